#include "services/vmm-local/fat32.hpp"
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

namespace dstack::vmm
{

namespace
{
// Microsoft "FAT: General Overview of On-Disk Format", 1.03. 512-byte sectors, one sector per cluster, two FATs.
constexpr std::uint32_t sector = 512;
constexpr std::uint32_t reserved_sectors = 32;
constexpr std::uint32_t end_of_chain = 0x0fffffff;

void put16(std::string& out, std::size_t at, std::uint32_t value)
{
    out[at] = static_cast<char>(value & 0xff);
    out[at + 1] = static_cast<char>((value >> 8) & 0xff);
}
void put32(std::string& out, std::size_t at, std::uint32_t value)
{
    put16(out, at, value & 0xffff);
    put16(out, at + 2, value >> 16);
}
void put_text(std::string& out, std::size_t at, std::string_view text, std::size_t width)
{
    for (std::size_t i = 0; i < width; ++i) { out[at + i] = i < text.size() ? text[i] : ' '; }
}

class File
{
  public:
    explicit File(const std::string& path) : fd_(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600)) {}
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File()
    {
        if (fd_ >= 0) { close(fd_); }
    }
    explicit operator bool() const { return fd_ >= 0; }
    bool resize(std::uint64_t size) { return ftruncate(fd_, static_cast<off_t>(size)) == 0; }
    bool write_at(std::uint64_t at, std::string_view bytes)
    {
        while (!bytes.empty())
        {
            const ssize_t n = pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(at));
            if (n < 0 && errno == EINTR) { continue; }
            if (n <= 0) { return false; }
            bytes.remove_prefix(static_cast<std::size_t>(n));
            at += static_cast<std::uint64_t>(n);
        }
        return true;
    }

  private:
    int fd_;
};

std::uint8_t alias_checksum(std::string_view alias)
{
    std::uint8_t sum = 0;
    for (const char c : alias)
    {
        sum = static_cast<std::uint8_t>(((sum & 1) << 7) + (sum >> 1) + static_cast<std::uint8_t>(c));
    }
    return sum;
}

/// The long name's entries, last part first, then the short one with a made-up unique alias.
std::string directory_entries(const ShareFile& file, std::size_t index, std::uint32_t first_cluster)
{
    char alias[12];
    std::snprintf(alias, sizeof alias, "F%06u~  ", static_cast<unsigned>(index % 1000000));
    std::string short_name(11, ' ');
    put_text(short_name, 0, std::string_view{alias, 8}, 8);
    const std::uint8_t checksum = alias_checksum(short_name);

    constexpr std::size_t per_entry = 13;
    constexpr std::array<std::size_t, per_entry> places{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};
    const std::size_t parts = (file.name.size() + per_entry - 1) / per_entry;
    std::string out;
    for (std::size_t part = parts; part-- > 0;)
    {
        std::string entry(32, '\0');
        entry[0] = static_cast<char>((part + 1) | (part + 1 == parts ? 0x40 : 0));
        entry[11] = 0x0f; // long name
        entry[13] = static_cast<char>(checksum);
        for (std::size_t i = 0; i < per_entry; ++i)
        {
            const std::size_t at = part * per_entry + i;
            const std::uint32_t unit = at < file.name.size() ? static_cast<unsigned char>(file.name[at])
                                                             : (at == file.name.size() ? 0 : 0xffff);
            put16(entry, places[i], unit);
        }
        out += entry;
    }
    std::string entry(32, '\0');
    put_text(entry, 0, short_name, 11);
    entry[11] = 0x21;                       // read-only, archive
    put16(entry, 16, (43 << 9) | (1 << 5) | 1); // 2023-01-01: the same content gives the same bytes
    put16(entry, 18, (43 << 9) | (1 << 5) | 1);
    put16(entry, 24, (43 << 9) | (1 << 5) | 1);
    put16(entry, 20, first_cluster >> 16);
    put16(entry, 26, first_cluster & 0xffff);
    put32(entry, 28, static_cast<std::uint32_t>(file.bytes.size()));
    return out + entry;
}

std::string boot_sector(std::string_view label, std::uint32_t sectors, std::uint32_t fat_sectors)
{
    std::string out(sector, '\0');
    out.replace(0, 3, "\xeb\x58\x90");
    put_text(out, 3, "DSTACK", 8);
    put16(out, 11, sector);
    out[13] = 1; // sectors per cluster
    put16(out, 14, reserved_sectors);
    out[16] = 2; // FATs
    out[21] = static_cast<char>(0xf8);
    put16(out, 24, 32); // geometry: means nothing, must not be zero
    put16(out, 26, 64);
    put32(out, 32, sectors);
    put32(out, 36, fat_sectors);
    put32(out, 44, 2); // root directory's first cluster
    put16(out, 48, 1); // FSInfo
    put16(out, 50, 6); // backup boot sector
    out[64] = static_cast<char>(0x80);
    out[66] = 0x29;
    put32(out, 67, 0x44535348); // volume id
    put_text(out, 71, label, 11);
    put_text(out, 82, "FAT32", 8);
    put16(out, 510, 0xaa55);
    return out;
}

std::string info_sector(std::uint32_t free_clusters, std::uint32_t next)
{
    std::string out(sector, '\0');
    put32(out, 0, 0x41615252);
    put32(out, 484, 0x61417272);
    put32(out, 488, free_clusters);
    put32(out, 492, next);
    put32(out, 508, 0xaa550000);
    return out;
}
} // namespace

Result<Done> write_fat32(const std::string& path, std::string_view label, std::uint64_t size_bytes,
                         const std::vector<ShareFile>& files)
{
    const auto sectors = static_cast<std::uint32_t>(size_bytes / sector);
    const std::uint32_t fat_sectors = (sectors * 4 + sector - 1) / sector; // a little more than needed: one entry per sector
    const std::uint32_t data_start = reserved_sectors + 2 * fat_sectors;
    if (sectors < data_start + 65525) { return Error{Errc::invalid_argument, "FAT32 needs at least 65525 clusters"}; }
    const std::uint32_t clusters = sectors - data_start;

    // The root directory first, then the files, each in one run of clusters.
    std::string root(32, '\0');
    put_text(root, 0, label, 11);
    root[11] = 0x08; // volume label
    std::size_t root_size = 32;
    for (const auto& file : files)
    {
        if (file.name.empty() || file.name.size() > 255) { return Error{Errc::invalid_argument, "host share: bad file name"}; }
        root_size += 32 * ((file.name.size() + 12) / 13 + 1);
    }
    const auto clusters_of = [](std::size_t bytes) { return static_cast<std::uint32_t>((bytes + sector - 1) / sector); };
    const std::uint32_t root_clusters = clusters_of(root_size);
    std::uint64_t needed = root_clusters;
    for (const auto& file : files) { needed += clusters_of(file.bytes.size()); }
    if (needed > clusters) { return Error{Errc::resource_exhausted, "the host share has no room for its files"}; }

    std::string fat(8, '\0');
    put32(fat, 0, 0x0ffffff8);
    put32(fat, 4, end_of_chain);
    std::uint32_t next = 2;
    const auto chain = [&fat, &next](std::uint32_t count)
    {
        const std::uint32_t first = next;
        fat.resize(fat.size() + 4ULL * count);
        for (std::uint32_t i = 0; i < count; ++i, ++next) { put32(fat, 4ULL * next, i + 1 == count ? end_of_chain : next + 1); }
        return first;
    };
    chain(root_clusters);
    std::vector<std::uint32_t> first_clusters;
    for (std::size_t i = 0; i < files.size(); ++i)
    {
        const std::uint32_t count = clusters_of(files[i].bytes.size());
        first_clusters.push_back(count == 0 ? 0 : chain(count));
        root += directory_entries(files[i], i, first_clusters.back());
    }

    File out{path};
    const auto failed = [&path] { return errno_error("write " + path, errno); };
    if (!out || !out.resize(size_bytes)) { return failed(); }
    const std::string boot = boot_sector(label, sectors, fat_sectors);
    const std::string info = info_sector(clusters - (next - 2), next);
    for (const std::uint32_t at : {0U, 6U})
    {
        if (!out.write_at(std::uint64_t{at} * sector, boot) || !out.write_at((std::uint64_t{at} + 1) * sector, info)) { return failed(); }
    }
    for (std::uint32_t copy = 0; copy < 2; ++copy)
    {
        if (!out.write_at(std::uint64_t{reserved_sectors + copy * fat_sectors} * sector, fat)) { return failed(); }
    }
    const auto place = [data_start](std::uint32_t cluster) { return (std::uint64_t{data_start} + cluster - 2) * sector; };
    if (!out.write_at(place(2), root)) { return failed(); }
    for (std::size_t i = 0; i < files.size(); ++i)
    {
        if (!files[i].bytes.empty() && !out.write_at(place(first_clusters[i]), files[i].bytes)) { return failed(); }
    }
    return Done{};
}

} // namespace dstack::vmm
