#include "services/auth/ledger_disk.hpp"
#include "services/auth/record.hpp"
#include "shared/base/time.hpp"
#include "shared/ledger/chain.hpp"
#include "shared/ledger/checkpoint.hpp"
#include "shared/ledger/files.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <array>
#include <cerrno>
#include <fcntl.h>
#include <optional>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace dstack::auth
{

namespace
{

constexpr std::string_view keep_it = "the ledger was changed; keep it as evidence, move it away, and start with a new one";
constexpr std::size_t small_file = 1024 * 1024; ///< walked as a whole at the start
constexpr std::size_t reserve_from = 16 * 1024; ///< batches of this size show that more will come
constexpr std::size_t reserve_bytes = 384 * 1024;
constexpr std::size_t max_part = 512 * 1024;

Error damaged(const std::string& path, std::uint64_t offset, Error why)
{
    return std::move(why).within(path + ", offset " + std::to_string(offset)).with_hint(keep_it);
}

Error damaged(const std::string& path, std::uint64_t offset, std::string why)
{
    return damaged(path, offset, Error{Errc::data_loss, std::move(why), {}, {}});
}

bool is_same_file(int fd, const std::string& path)
{
    struct stat here = {};
    struct stat there = {};
    return ::fstat(fd, &here) == 0 && ::stat(path.c_str(), &there) == 0 && here.st_ino == there.st_ino && here.st_dev == there.st_dev;
}

Result<std::uint64_t> size_of(int fd, const std::string& path)
{
    struct stat facts = {};
    if (::fstat(fd, &facts) != 0) { return errno_error("stat " + path, errno); }
    return static_cast<std::uint64_t>(facts.st_size);
}

/// The text of a string member that needs no unescaping.
std::string_view member(std::string_view line, std::string_view key)
{
    const auto at = line.rfind(key);
    if (at == std::string_view::npos) { return {}; }
    const auto from = at + key.size();
    return line.substr(from, line.find('"', from) - from);
}

std::string file_path(const std::string& directory, std::uint64_t first, bool active)
{
    return directory + "/" + (active ? std::string{ledger::active_name} : ledger::sealed_name(first));
}

} // namespace

Space space_of(const std::string& directory)
{
    struct statvfs facts = {};
    if (::statvfs(directory.c_str(), &facts) != 0) { return {}; }
    const auto unit = static_cast<std::uint64_t>(facts.f_frsize);
    const auto usable = static_cast<std::uint64_t>(facts.f_blocks - facts.f_bfree + facts.f_bavail);
    return {static_cast<std::uint64_t>(facts.f_bavail) * unit, usable * unit};
}

Result<Unchecked> check_part(Unchecked part, std::size_t bytes)
{
    std::string path = file_path(part.directory, part.file, true);
    auto file = ledger::File::open(path);
    const auto first_of = [](const ledger::File& f) -> std::uint64_t
    {
        ledger::LineReader reader{f.fd(), 0};
        std::string_view line;
        auto got = reader.next(line);
        auto link = got && *got ? ledger::read_link(line) : Result<ledger::Link>{Error{}};
        return link ? link->sequence : 0;
    };
    if (!file || first_of(*file) != part.file)
    {
        // It may have become full meanwhile. Otherwise it is the first record that was changed: the chain says so below.
        const std::string sealed = file_path(part.directory, part.file, false);
        auto renamed = ledger::File::open(sealed);
        if (renamed) { path = sealed; }
        if (renamed || !file) { file = std::move(renamed); }
    }
    if (!file) { return std::move(file).error(); }
    ledger::Chain chain{part.sequence, part.hash};
    ledger::LineReader reader{file->fd(), part.from};
    std::string_view line;
    const std::uint64_t until = std::min<std::uint64_t>(part.to, part.from + bytes);
    while (reader.position() < until)
    {
        const std::uint64_t at = reader.position();
        auto got = reader.next(line);
        if (!got) { return std::move(got).error().within(path); }
        if (!*got) { return damaged(path, at, "the file became shorter"); }
        auto follows = chain.next(line);
        if (!follows) { return damaged(path, at, std::move(follows).error()); }
    }
    part.from = reader.position();
    part.sequence = chain.sequence();
    part.hash = chain.hash();
    return part;
}

// --- opening ----------------------------------------------------------------------------------------------------------

/// Finds out what is there, as of the last checkpoint, and cuts off what a crash left unfinished.
class Disk::Loading
{
  public:
    explicit Loading(Disk& disk) : disk_(disk) {}
    Result<Opened> run();

  private:
    Result<Done> open_files();
    Result<Done> read_last_checkpoint();
    Result<Done> anchor();
    Result<Done> walk();
    Result<Done> walk_file(std::size_t index, std::uint64_t from);
    Result<Done> torn(std::uint64_t at, std::uint64_t bytes);
    Result<bool> is_torn(int fd, std::uint64_t at, std::string_view line);
    Result<Done> note(std::string reason);
    std::string path_of(std::size_t index) const { return file_path(disk_.directory_, disk_.files_[index], index + 1 == disk_.files_.size()); }
    void see(std::string_view line);

    Disk& disk_;
    std::optional<ledger::Checkpoint> checkpoint_;
    ledger::Chain chain_;
    ledger::Chain before_active_; ///< behind the last record of the file before the active one
    std::size_t start_index_ = 0;
    std::uint64_t start_offset_ = 0;
    Opened out_;
    std::string torn_reason_;
};

Result<Done> Disk::Loading::open_files()
{
    Disk& d = disk_;
    auto segments = ledger::list_segments(d.directory_);
    if (!segments) { return std::move(segments).error(); }
    for (const auto& segment : *segments)
    {
        if (segment.first != 0) { d.files_.push_back(segment.first); }
    }
    d.path_ = d.directory_ + "/" + std::string{ledger::active_name};
    const bool is_new = segments->empty() || segments->back().first != 0;
    d.fd_ = ::open(d.path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (d.fd_ < 0) { return errno_error("open " + d.path_, errno); }
    if (is_new)
    {
        auto durable = state::fsync_dir(d.directory_);
        if (!durable) { return durable; }
    }
    if (!d.files_.empty()) // the number that the active one begins with
    {
        const std::string path = file_path(d.directory_, d.files_.back(), false);
        auto file = ledger::File::open(path);
        if (!file) { return std::move(file).error(); }
        auto size = file->size();
        if (!size) { return std::move(size).error().within(path); }
        auto line = *size == 0 ? Result<std::string>{std::string{}} : ledger::last_line(file->fd(), *size);
        if (!line) { return std::move(line).error().within(path); }
        auto known = before_active_.resume(*line);
        if (!known) { return damaged(path, *size, "the last record of a file that was full is not whole"); }
    }
    d.files_.push_back(before_active_.sequence() + 1);
    return Done{};
}

Result<Done> Disk::Loading::read_last_checkpoint()
{
    Disk& d = disk_;
    d.checkpoints_path_ = d.directory_ + "/" + std::string{ledger::checkpoints_name};
    d.checkpoints_fd_ = ::open(d.checkpoints_path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (d.checkpoints_fd_ < 0) { return errno_error("open " + d.checkpoints_path_, errno); }
    auto size = size_of(d.checkpoints_fd_, d.checkpoints_path_);
    if (!size) { return std::move(size).error(); }
    // The end of the last whole line: what is behind it was acknowledged to nobody.
    constexpr std::uint64_t window = 16 * 1024;
    const std::uint64_t from = *size > window ? *size - window : 0;
    ledger::LineReader reader{d.checkpoints_fd_, from};
    std::string_view line;
    std::string last;
    std::uint64_t at = from;
    for (;;)
    {
        const std::uint64_t start = reader.position();
        auto got = reader.next(line);
        if (!got) { return std::move(got).error().within(d.checkpoints_path_); }
        if (!*got) { break; }
        last = line;
        at = start;
    }
    d.checkpoints_size_ = reader.position();
    d.checkpoint_hash_ = ledger::genesis;
    auto key = ledger::load_key(d.directory_, last.empty());
    if (!key) { return std::move(key).error(); }
    d.seed_ = key->seed;
    if (reader.position() != *size && ::ftruncate(d.checkpoints_fd_, static_cast<off_t>(reader.position())) != 0)
    {
        return errno_error("truncate " + d.checkpoints_path_, errno);
    }
    if (last.empty()) { return Done{}; }
    auto read = ledger::read_checkpoint(last, key->public_key);
    if (!read) { return damaged(d.checkpoints_path_, at, std::move(read).error().within("the last checkpoint")); }
    d.checkpoint_hash_ = ledger::view(ledger::hash_line(last));
    d.checkpoint_number_ = read->number;
    d.signed_records_ = read->records;
    checkpoint_ = std::move(*read);
    return Done{};
}

/// Where the last checkpoint stands, and that its record is there.
Result<Done> Disk::Loading::anchor()
{
    const Disk& d = disk_;
    if (!checkpoint_ || checkpoint_->records == 0) { return Done{}; }
    const ledger::Checkpoint& c = *checkpoint_;
    const std::string name = "checkpoint " + std::to_string(c.number);
    const auto found = std::find(d.files_.begin(), d.files_.end(), c.segment);
    if (found == d.files_.end())
    {
        return damaged(d.directory_, 0, "the file that begins with record " + std::to_string(c.segment) + " is missing, and " + name + " signed it");
    }
    start_index_ = static_cast<std::size_t>(found - d.files_.begin());
    const std::string path = path_of(start_index_);
    auto file = ledger::File::open(path);
    if (!file) { return std::move(file).error(); }
    auto size = file->size();
    if (!size) { return std::move(size).error().within(path); }
    if (*size < c.offset)
    {
        return damaged(path, *size, name + " signed " + std::to_string(c.records) + " records, the last up to offset " +
                                        std::to_string(c.offset) + ": records were removed at the end");
    }
    auto line = ledger::last_line(file->fd(), c.offset);
    if (!line) { return std::move(line).error().within(path); }
    const auto known = chain_.resume(*line);
    if (!known || chain_.sequence() != c.records || chain_.hash() != c.hash)
    {
        return damaged(path, c.offset - std::min<std::uint64_t>(c.offset, line->size() + 1),
                       "record " + std::to_string(c.records) + " is not the one that " + name + " signed: it was changed or moved");
    }
    start_offset_ = c.offset;
    out_.identity = c.ledger;
    out_.policy_hash = member(*line, ",\"policy\":\"");
    const bool is_active = start_index_ + 1 == d.files_.size();
    if (!is_active) { return Done{}; }
    if (c.offset <= small_file) // then from its beginning
    {
        start_offset_ = 0;
        chain_ = before_active_;
    }
    else { out_.unchecked = {d.directory_, c.segment, 0, c.offset, before_active_.sequence(), before_active_.hash()}; }
    return Done{};
}

void Disk::Loading::see(std::string_view line)
{
    if (chain_.sequence() == 1) { out_.identity = chain_.hash(); }
    if (line.substr(0, 100).find(",\"kind\":\"policy\"") != std::string_view::npos) { out_.policy_hash = member(line, ",\"policy\":\""); }
}

/// A crash of the machine may leave zeroes for any page of the last flush. It is damage when a later flush shows that this
/// one had been on disk.
Result<bool> Disk::Loading::is_torn(int fd, std::uint64_t at, std::string_view line)
{
    if (line.find('\0') == std::string_view::npos) { return false; }
    ledger::LineReader reader{fd, at};
    std::string_view later;
    for (;;)
    {
        auto got = reader.next(later);
        if (!got) { return false; }
        if (!*got) { return true; }
        const bool whole = later.find('\0') == std::string_view::npos;
        if (whole && reader.position() > at + line.size() + 1 && later.find(",\"flush\":true,") != std::string_view::npos) { return false; }
    }
}

Result<Done> Disk::Loading::torn(std::uint64_t at, std::uint64_t bytes)
{
    Disk& d = disk_;
    d.size_ = at;
    if (checkpoint_ && chain_.sequence() < checkpoint_->records)
    {
        return damaged(d.path_, at, "checkpoint " + std::to_string(checkpoint_->number) + " signed " + std::to_string(checkpoint_->records) +
                                        " records: record " + std::to_string(chain_.sequence() + 1) + " was changed or removed");
    }
    auto size = size_of(d.fd_, d.path_);
    if (!size) { return std::move(size).error(); }
    if (*size != at && ::ftruncate(d.fd_, static_cast<off_t>(at)) != 0) { return errno_error("truncate " + d.path_, errno); }
    if (bytes != 0)
    {
        torn_reason_ = "cut off " + std::to_string(bytes) + " bytes at offset " + std::to_string(at) +
                       ": what a crash left of records that nobody was told of";
    }
    return Done{};
}

Result<Done> Disk::Loading::walk_file(std::size_t index, std::uint64_t from)
{
    const std::string path = path_of(index);
    const bool is_active = index + 1 == disk_.files_.size();
    auto file = ledger::File::open(path);
    if (!file) { return std::move(file).error(); }
    ledger::LineReader reader{file->fd(), from};
    std::string_view line;
    for (;;)
    {
        const std::uint64_t at = reader.position();
        auto got = reader.next(line);
        if (!got) { return damaged(path, at, std::move(got).error()); }
        if (!*got) { break; }
        auto follows = chain_.next(line);
        if (!follows)
        {
            auto cut = is_active ? is_torn(file->fd(), at, line) : Result<bool>{false};
            if (!cut || !*cut) { return damaged(path, at, std::move(follows).error()); }
            auto size = file->size();
            return size ? torn(at, *size - at) : Result<Done>{std::move(size).error()};
        }
        see(line);
    }
    if (!is_active)
    {
        if (reader.rest().empty()) { return Done{}; }
        return damaged(path, reader.position(), "the last record of a file that was full is not whole");
    }
    return torn(reader.position(), ledger::tail_of(reader.rest(), reader.position()).torn);
}

Result<Done> Disk::Loading::walk()
{
    for (std::size_t i = start_index_; i < disk_.files_.size(); ++i)
    {
        auto walked = walk_file(i, i == start_index_ ? start_offset_ : 0);
        if (!walked) { return walked; }
    }
    if (checkpoint_ && chain_.sequence() < checkpoint_->records)
    {
        return damaged(disk_.path_, disk_.size_, "checkpoint " + std::to_string(checkpoint_->number) + " signed " +
                                                     std::to_string(checkpoint_->records) + " records, and there are " +
                                                     std::to_string(chain_.sequence()) + ": records were removed at the end");
    }
    return Done{};
}

/// A record about the ledger itself.
Result<Done> Disk::Loading::note(std::string reason)
{
    Record record;
    record.time_ms = unix_ms();
    record.kind = "repair";
    record.policy_hash = out_.policy_hash;
    record.reason = std::move(reason);
    RecordWriter writer;
    const std::string line{writer.line(record, chain_.sequence() + 1, chain_.hash(), true)};
    auto written = disk_.write(line + "\n");
    if (!written) { return std::move(written).error(); }
    auto follows = chain_.next(line);
    if (follows) { see(line); }
    return follows;
}

Result<Disk::Opened> Disk::Loading::run()
{
    auto files = open_files();
    if (!files) { return std::move(files).error(); }
    auto checkpoint = read_last_checkpoint();
    if (!checkpoint) { return std::move(checkpoint).error(); }
    auto anchored = anchor();
    if (!anchored) { return std::move(anchored).error(); }
    auto walked = walk();
    if (!walked) { return std::move(walked).error(); }
    const std::uint64_t found = chain_.sequence();
    for (const std::string& reason : {torn_reason_, !checkpoint_ && found > 0 ? "there was no signed checkpoint: the " + std::to_string(found) +
                                                                                    " records before this one were signed by nobody until now"
                                                                              : std::string{}})
    {
        if (reason.empty()) { continue; }
        auto noted = note(reason);
        if (!noted) { return std::move(noted).error(); }
    }
    if (!checkpoint_) // so that it is missed when it is taken away
    {
        auto signed_now = disk_.sign(chain_.sequence(), chain_.hash(), out_.identity);
        if (!signed_now) { return std::move(signed_now).error(); }
    }
    out_.layout = disk_.layout();
    out_.sequence = chain_.sequence();
    out_.hash = chain_.hash();
    return std::move(out_);
}

Result<Disk::Opened> Disk::open(const std::string& directory)
{
    auto made = state::make_dirs(directory, 0750);
    if (!made) { return std::move(made).error(); }
    std::shared_ptr<Disk> disk{new Disk};
    disk->directory_ = directory;
    disk->lock_ = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (disk->lock_ < 0) { return errno_error("open " + directory, errno); }
    if (::flock(disk->lock_, LOCK_EX | LOCK_NB) != 0)
    {
        return Error{Errc::failed_precondition,
                     directory + ": another process writes this ledger",
                     "is dstack-auth running already? `fuser " + directory + "/decisions.ndjson` names it",
                     {}};
    }
    auto opened = Loading{*disk}.run();
    if (opened) { opened->disk = std::move(disk); }
    return opened;
}

Disk::~Disk()
{
    for (const int fd : {fd_, checkpoints_fd_, lock_})
    {
        if (fd >= 0) { ::close(fd); }
    }
}

// --- writing ----------------------------------------------------------------------------------------------------------

Disk::Layout Disk::layout() const { return {files_, size_, signed_records_}; }

Result<Done> Disk::put(int fd, std::uint64_t offset, std::string_view bytes, const std::string& path) const
{
    while (!bytes.empty())
    {
        const ssize_t done = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (done < 0 && errno == EINTR) { continue; }
        if (done < 0) { return errno_error("write " + path, errno); }
        offset += static_cast<std::uint64_t>(done);
        bytes.remove_prefix(static_cast<std::size_t>(done));
    }
    return Done{};
}

/// Zeroes behind the batch: while later ones overwrite them, an fsync need not write the file's new size and blocks.
void Disk::reserve(std::uint64_t end, std::size_t batch)
{
    static std::array<char, 64 * 1024> zeroes{}; // never written to: costs no memory
    if (batch < reserve_from || end < reserved_) { return; }
    Result<Done> done = Done{};
    for (std::uint64_t at = end; done && at < end + reserve_bytes; at += zeroes.size())
    {
        done = put(fd_, at, {zeroes.data(), zeroes.size()}, path_);
    }
    if (done) { reserved_ = end + reserve_bytes; }
    else if (::ftruncate(fd_, static_cast<off_t>(end)) == 0) { reserved_ = 0; } // no space for that: then without
}

/// After a write or fsync that failed: nothing but what is known to be on disk.
Result<Done> Disk::clean()
{
    if (!unclean_) { return Done{}; }
    reserved_ = 0;
    if (::ftruncate(fd_, static_cast<off_t>(size_)) != 0) { return errno_error("truncate " + path_, errno); }
    if (::fdatasync(fd_) != 0) { return errno_error("fsync " + path_, errno); }
    unclean_ = false;
    return Done{};
}

Result<Disk::Layout> Disk::write(std::string_view lines)
{
    if (!is_same_file(fd_, path_))
    {
        return Error{Errc::data_loss, path_ + ": the file was removed or replaced under the running process", "restart dstack-auth", {}};
    }
    auto cleaned = clean();
    if (!cleaned) { return std::move(cleaned).error(); }
    const std::uint64_t end = size_ + lines.size();
    Result<Done> done = Done{};
    // In parts: what a crash may leave unfinished is then shorter than what a reader takes for a line.
    for (std::uint64_t at = size_; done && at < end; at += max_part)
    {
        const std::string_view part = lines.substr(static_cast<std::size_t>(at - size_), max_part);
        done = put(fd_, at, part, path_);
        if (done && at + part.size() == end) { reserve(end, lines.size()); }
        if (done && ::fdatasync(fd_) != 0) { done = errno_error("fsync " + path_, errno); }
    }
    if (!done)
    {
        unclean_ = true;
        const auto tried = clean();
        if (!tried) { unclean_ = true; } // again before the next write
        return std::move(done).error();
    }
    size_ = end;
    return layout();
}

Result<Disk::Layout> Disk::sign(std::uint64_t records, const std::string& hash, const std::string& identity)
{
    ledger::Checkpoint checkpoint;
    checkpoint.number = checkpoint_number_ + 1;
    checkpoint.time_ms = unix_ms();
    checkpoint.records = records;
    checkpoint.hash = hash;
    checkpoint.ledger = identity;
    checkpoint.segment = records == 0 ? 0 : files_.back();
    checkpoint.offset = size_;
    checkpoint.previous = checkpoint_hash_;
    if (records != 0 && records < files_.back()) { return layout(); } // nothing in this file yet: signed when the one before was closed
    const std::string line = ledger::encode_checkpoint(checkpoint, seed_);
    auto done = put(checkpoints_fd_, checkpoints_size_, line + "\n", checkpoints_path_);
    if (done && ::fdatasync(checkpoints_fd_) != 0) { done = errno_error("fsync " + checkpoints_path_, errno); }
    if (!done)
    {
        if (::ftruncate(checkpoints_fd_, static_cast<off_t>(checkpoints_size_)) != 0) { return errno_error("truncate " + checkpoints_path_, errno); }
        return std::move(done).error();
    }
    checkpoints_size_ += line.size() + 1;
    checkpoint_number_ = checkpoint.number;
    checkpoint_hash_ = ledger::view(ledger::hash_line(line));
    signed_records_ = records;
    return layout();
}

Result<Disk::Layout> Disk::rotate(std::uint64_t next)
{
    auto cleaned = clean();
    if (!cleaned) { return std::move(cleaned).error(); }
    trim();
    if (::fsync(fd_) != 0) { return errno_error("fsync " + path_, errno); }
    const std::string sealed = directory_ + "/" + ledger::sealed_name(files_.back());
    if (::rename(path_.c_str(), sealed.c_str()) != 0) { return errno_error("rename " + path_, errno); }
    const int fd = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (fd < 0)
    {
        const Error error = errno_error("open " + path_, errno);
        if (::rename(sealed.c_str(), path_.c_str()) != 0) { return errno_error("rename " + sealed, errno); }
        return error;
    }
    ::close(fd_);
    fd_ = fd;
    files_.push_back(next);
    size_ = reserved_ = 0;
    auto durable = state::fsync_dir(directory_);
    if (!durable) { return std::move(durable).error(); }
    return layout();
}

void Disk::trim()
{
    if (reserved_ > size_ && ::ftruncate(fd_, static_cast<off_t>(size_)) == 0) { reserved_ = 0; }
}

} // namespace dstack::auth
