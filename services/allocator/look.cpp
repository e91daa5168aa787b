#include "services/allocator/look.hpp"
#include "shared/base/time.hpp"
#include "shared/process/fd.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <charconv>
#include <dirent.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/vm_sockets_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace dstack::allocator
{

namespace
{

constexpr std::size_t max_command_line = 128 * 1024;
constexpr std::size_t max_shown = 200;
constexpr std::size_t max_file = 256 * 1024;
constexpr std::size_t max_table = 64 * 1024 * 1024;
constexpr std::size_t max_cids = 16;             ///< of one process: QEMU has one
constexpr std::uint32_t max_pool = 1'000'000;    ///< of one dstack-vmm
constexpr std::int64_t settled_after_ms = 3'000; ///< a younger process may still become another program
constexpr std::int64_t just_begun_ms = 500;      ///< of those that were there when we began, few are that young
constexpr std::int64_t read_again_ms = 10'000;
constexpr uid_t first_user = 1000; ///< people, not services, from here on

using process::Fd;

template <class T>
bool whole_number(std::string_view text, T& out)
{
    const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), out);
    return failed == std::errc{} && end == text.data() + text.size();
}

/// `visit(name, inode)` for each entry of an open directory.
template <class F>
void each_entry(int directory, std::string& buffer, F visit)
{
    buffer.resize(64 * 1024);
    for (;;)
    {
        const long got = ::syscall(SYS_getdents64, directory, buffer.data(), buffer.size());
        if (got <= 0) { return; }
        for (long at = 0; at < got;)
        {
            const auto* entry = reinterpret_cast<const dirent64*>(buffer.data() + at);
            visit(static_cast<const char*>(entry->d_name), static_cast<std::uint64_t>(entry->d_ino));
            at += entry->d_reclen;
        }
    }
}

/// At most `limit` bytes of a file below an open directory; empty when it cannot be read.
std::string text_at(int directory, const std::string& path, std::size_t limit)
{
    const Fd file{::openat(directory, path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)};
    std::string out;
    if (file.get() < 0) { return out; }
    for (;;)
    {
        const std::size_t before = out.size();
        if (before >= limit) { return out; }
        out.resize(std::min(before + 4096, limit));
        const ssize_t got = ::read(file.get(), out.data() + before, out.size() - before);
        out.resize(before + (got > 0 ? static_cast<std::size_t>(got) : 0));
        if (got <= 0) { return out; }
    }
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string pool_text(const std::string& file) { return "cid pool of dstack-vmm (" + (file.empty() ? "its defaults" : file) + ")"; }

Use use_of(Resource resource, Process process, std::string why)
{
    Use out{std::move(resource), 0, std::move(process), std::move(why)};
    out.last = out.resource.value;
    return out;
}

} // namespace

std::string Process::text() const
{
    if (pid == 0) { return "a process that this user cannot see (as root, `ss -tulnp` names it)"; }
    return (name.empty() ? "process" : name) + ", pid " + std::to_string(pid) + (unit.empty() ? "" : " (" + unit + ")");
}

bool Use::in_the_way_of(const Resource& wanted) const
{
    if (wanted.kind != Kind::port) { return resource.kind == wanted.kind && wanted.value >= resource.value && wanted.value <= last; }
    return resource.conflicts(wanted) && !(only_v6 && wanted.address->is_v4());
}

Looker::Looker(std::string proc) : proc_(std::move(proc))
{
    proc_fd_ = ::open(proc_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    diag_fd_ = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    const timeval limit{2, 0}; // a kernel that does not answer must not hang the allocator
    if (diag_fd_ >= 0) { ::setsockopt(diag_fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit); }
}

Looker::~Looker()
{
    if (proc_fd_ >= 0) { ::close(proc_fd_); }
    if (diag_fd_ >= 0) { ::close(diag_fd_); }
}

void Looker::read_command_line(long pid, Seen& seen, std::int64_t now_ms)
{
    std::string text = text_at(proc_fd_, std::to_string(pid) + "/cmdline", max_command_line);
    seen.read_ms = now_ms;
    seen.vmm = program_of_command_line(text) == "dstack-vmm";
    seen.interesting = seen.vmm || text.find("guest-cid=") != std::string::npos || text.find("hostfwd=") != std::string::npos;
    seen.command_line = seen.interesting ? std::move(text) : std::string{};
    described_.erase(pid);
}

void Looker::scan_processes()
{
    if (proc_fd_ < 0) { return; }
    const auto now_ms = static_cast<std::int64_t>(unix_ms());
    const bool first_scan = seen_.empty();
    std::unordered_map<long, Seen> before;
    before.swap(seen_);
    std::vector<std::pair<long, std::uint64_t>> pids;
    ::lseek(proc_fd_, 0, SEEK_SET);
    each_entry(proc_fd_, buffer_,
               [&](std::string_view name, std::uint64_t inode)
               {
                   long pid = 0;
                   if (is_digit(name.front()) && whole_number(name, pid)) { pids.emplace_back(pid, inode); }
               });
    seen_.reserve(pids.size());
    for (const auto& [pid, inode] : pids)
    {
        auto known = before.find(pid);
        const bool same = known != before.end() && known->second.proc_inode == inode;
        Seen& seen = seen_[pid] = same ? std::move(known->second) : Seen{inode, first_scan ? now_ms - settled_after_ms + just_begun_ms : now_ms};
        const bool was_young = seen.read_ms - seen.first_ms < settled_after_ms;
        if (!same || was_young || now_ms - seen.read_ms > read_again_ms || now_ms < seen.read_ms) { read_command_line(pid, seen, now_ms); }
    }
    std::erase_if(described_, [&](const auto& one) { return !seen_.contains(one.first); });
}

const Process& Looker::process(long pid)
{
    static const Process nobody;
    if (pid == 0) { return nobody; }
    const auto seen = seen_.find(pid);
    const std::uint64_t inode = seen == seen_.end() ? 0 : seen->second.proc_inode;
    auto& [of, out] = described_[pid];
    if (out.pid == pid && of == inode && inode != 0) { return out; }
    of = inode;
    const std::string folder = std::to_string(pid);
    const std::string command_line = text_at(proc_fd_, folder + "/cmdline", max_command_line);
    out = Process{pid};
    out.name = printable_command(text_at(proc_fd_, folder + "/comm", 64), 32);
    while (!out.name.empty() && out.name.back() == '?') { out.name.pop_back(); } // its newline
    out.unit = unit_of_cgroup(text_at(proc_fd_, folder + "/cgroup", 16 * 1024));
    out.command = printable_command(command_line, max_shown);
    out.cids = cids_of_command_line(command_line);
    if (out.cids.size() > max_cids) { out.cids.resize(max_cids); }
    out.forwards = forwards_of_command_line(command_line);
    return out;
}

bool Looker::dump(std::uint8_t family, bool tcp, std::uint16_t port, std::vector<Socket>& out)
{
    struct
    {
        nlmsghdr header;
        inet_diag_req_v2 request;
    } message{};
    message.header.nlmsg_len = sizeof message;
    message.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.request.sdiag_family = family;
    message.request.sdiag_protocol = tcp ? IPPROTO_TCP : IPPROTO_UDP;
    message.request.idiag_states = tcp ? (1U << 7 | 1U << 10 | 1U << 13) : 0xffff'ffffU; // closed, listening, bound
    message.request.id.idiag_sport = htons(port);
    if (::send(diag_fd_, &message, sizeof message, 0) < 0) { return false; }
    buffer_.resize(64 * 1024);
    bool any = false;
    for (;;)
    {
        const ssize_t got = ::recv(diag_fd_, buffer_.data(), buffer_.size(), 0);
        if (got < static_cast<ssize_t>(sizeof(nlmsghdr))) { return false; }
        nlmsghdr first{};
        std::memcpy(&first, buffer_.data(), sizeof first);
        if (!any && first.nlmsg_type == NLMSG_ERROR) { return false; }
        any = true;
        if (!decode_inet_diag({buffer_.data(), static_cast<std::size_t>(got)}, tcp, out)) { return true; }
    }
}

std::vector<Socket> Looker::sockets(bool tcp, std::uint16_t port)
{
    std::vector<Socket> out;
    for (const std::uint8_t family : {std::uint8_t{AF_INET}, std::uint8_t{AF_INET6}})
    {
        const std::size_t before = out.size();
        if (diag_fd_ >= 0 && dump(family, tcp, port, out)) { continue; }
        out.resize(before, Socket{Address::v4({})});
        const std::string table = proc_ + "/net/" + (tcp ? "tcp" : "udp") + (family == AF_INET ? "" : "6");
        const auto text = state::read_file(table, max_table);
        for (const Socket& socket : parse_socket_table(text ? *text : std::string{}, tcp))
        {
            if (port == 0 || socket.port == port) { out.push_back(socket); }
        }
    }
    std::erase_if(out, [&](const Socket& one) { return !one.holds_port || (port != 0 && one.port != port); });
    return out;
}

std::vector<VsockListener> Looker::vsock_listeners()
{
    std::vector<VsockListener> out;
    struct
    {
        nlmsghdr header;
        vsock_diag_req request;
    } message{};
    message.header.nlmsg_len = sizeof message;
    message.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.request.sdiag_family = AF_VSOCK;
    message.request.vdiag_states = 1U << 10;
    if (diag_fd_ < 0 || ::send(diag_fd_, &message, sizeof message, 0) < 0) { return out; }
    buffer_.resize(64 * 1024);
    for (;;)
    {
        const ssize_t got = ::recv(diag_fd_, buffer_.data(), buffer_.size(), 0);
        if (got <= 0 || !decode_vsock_diag({buffer_.data(), static_cast<std::size_t>(got)}, out)) { return out; }
    }
}

/// How many of `wanted` (sorted) this process has open that had no owner before.
std::size_t Looker::read_descriptors(long pid, const std::vector<std::uint64_t>& wanted)
{
    const Fd folder{::openat(proc_fd_, (std::to_string(pid) + "/fd").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (folder.get() < 0) { return 0; }
    std::size_t found = 0;
    constexpr std::string_view prefix = "socket:[";
    std::array<char, 64> target{};
    each_entry(folder.get(), buffer_,
               [&](const char* name, std::uint64_t)
               {
                   if (!is_digit(name[0])) { return; }
                   const ssize_t length = ::readlinkat(folder.get(), name, target.data(), target.size());
                   const std::string_view text{target.data(), length > 0 ? static_cast<std::size_t>(length) : 0};
                   std::uint64_t inode = 0;
                   if (!text.starts_with(prefix) || !text.ends_with(']')) { return; }
                   if (!whole_number(text.substr(prefix.size(), text.size() - prefix.size() - 1), inode)) { return; }
                   const auto at = std::lower_bound(wanted.begin(), wanted.end(), inode);
                   if (at == wanted.end() || *at != inode) { return; }
                   long& owner = owners_[inode];
                   if (owner != 0) { return; }
                   owner = pid;
                   ++found;
               });
    return found;
}

void Looker::find_owners(const std::vector<std::uint64_t>& inodes)
{
    std::vector<std::uint64_t> wanted;
    std::vector<long> likely;
    for (const std::uint64_t inode : inodes)
    {
        const auto known = owners_.find(inode);
        if (known != owners_.end() && (known->second == 0 || seen_.contains(known->second)))
        {
            if (known->second != 0) { likely.push_back(known->second); }
            continue;
        }
        owners_[inode] = 0;
        wanted.push_back(inode);
    }
    if (wanted.empty()) { return; }
    std::sort(wanted.begin(), wanted.end());
    wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
    std::size_t left = wanted.size();
    const auto search = [&](long pid) { left -= read_descriptors(pid, wanted); };
    // Those that have sockets have more of them.
    std::sort(likely.begin(), likely.end());
    likely.erase(std::unique(likely.begin(), likely.end()), likely.end());
    for (const long pid : likely)
    {
        if (left > 0) { search(pid); }
    }
    for (const auto& [pid, seen] : seen_)
    {
        if (left == 0) { break; }
        if (!std::binary_search(likely.begin(), likely.end(), pid)) { search(pid); }
    }
}

Process Looker::owner(std::uint64_t inode)
{
    const auto known = owners_.find(inode);
    return process(known == owners_.end() ? 0 : known->second);
}

std::vector<Use> Looker::port(const std::string& protocol, std::uint16_t port, bool owners)
{
    const auto found = sockets(protocol == "tcp", port);
    if (owners && !found.empty())
    {
        scan_processes();
        std::vector<std::uint64_t> inodes;
        for (const Socket& socket : found) { inodes.push_back(socket.inode); }
        find_owners(inodes);
    }
    std::vector<Use> out;
    for (const Socket& socket : found)
    {
        out.push_back(use_of({Kind::port, protocol, socket.address, socket.port}, owners ? owner(socket.inode) : Process{}, "listens"));
        out.back().only_v6 = socket.only_v6;
    }
    return out;
}

std::vector<Use> Looker::vsock(std::uint32_t port)
{
    std::vector<Use> out;
    std::vector<std::uint64_t> inodes;
    const auto found = vsock_listeners();
    for (const VsockListener& one : found)
    {
        if (one.port == port) { inodes.push_back(one.inode); }
    }
    if (inodes.empty()) { return out; }
    scan_processes();
    find_owners(inodes);
    for (const std::uint64_t inode : inodes) { out.push_back(use_of({Kind::vsock_port, {}, {}, port}, owner(inode), "listens")); }
    return out;
}

std::vector<Use> Looker::guests()
{
    scan_processes();
    std::vector<Use> out;
    for (auto& [pid, seen] : seen_)
    {
        if (!seen.interesting) { continue; }
        const Process& who = process(pid);
        for (const std::uint32_t cid : who.cids) { out.push_back(use_of({Kind::cid, {}, {}, cid}, who, "cid of its guest")); }
    }
    add_pools(out);
    add_libvirt(out);
    return out;
}

/// A dstack-vmm takes CIDs of its pool without asking anybody. Whoever may run one as a person could claim the whole range:
/// only services' and root's count.
void Looker::add_pools(std::vector<Use>& out)
{
    for (auto& [pid, seen] : seen_)
    {
        if (!seen.vmm) { continue; }
        const std::string folder = std::to_string(pid);
        struct stat info{};
        if (::fstatat(proc_fd_, folder.c_str(), &info, 0) != 0) { continue; }
        if (info.st_uid >= first_user && info.st_uid != ::geteuid()) { continue; }
        std::string named = config_of_command_line(seen.command_line);
        std::vector<std::string> texts;
        std::string file;
        const auto add = [&](const std::string& path, const std::string& shown)
        {
            auto text = text_at(proc_fd_, path, max_file);
            if (text.empty()) { return; }
            texts.push_back(std::move(text));
            file = shown;
        };
        // As upstream's load_config reads them, in its view of the file system
        add(folder + "/root/etc/vmm/vmm.toml", "/etc/vmm/vmm.toml");
        add(folder + "/cwd/vmm.toml", "vmm.toml");
        if (!named.empty()) { add(folder + (named.front() == '/' ? "/root" : "/cwd/") + named, printable_command(named, max_shown)); }
        const VmmConfig config = parse_vmm_config(texts);
        Use pool = use_of({Kind::cid, {}, {}, config.cid_start}, process(pid), pool_text(file));
        pool.last = std::min(config.cid_last(), config.cid_start > 0xffff'ffff - max_pool ? 0xffff'fffeU : config.cid_start + max_pool);
        if (config.cid_pool_size > 0) { out.push_back(std::move(pool)); }
        if (config.host_api_port != 0)
        {
            out.push_back(use_of({Kind::vsock_port, {}, {}, config.host_api_port}, process(pid), "host api of dstack-vmm (" + (file.empty() ? "its defaults" : file) + ")"));
        }
    }
}

void Looker::add_libvirt(std::vector<Use>& out)
{
    for (const char* folder : {"/etc/libvirt/qemu", "/run/libvirt/qemu"})
    {
        const Fd directory{::open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
        if (directory.get() < 0) { continue; }
        std::vector<std::string> files;
        each_entry(directory.get(), buffer_,
                   [&](std::string_view name, std::uint64_t)
                   {
                       if (name.ends_with(".xml")) { files.emplace_back(name); }
                   });
        for (const std::string& file : files)
        {
            for (const std::uint32_t cid : cids_of_libvirt_domain(text_at(directory.get(), file, max_file)))
            {
                out.push_back(use_of({Kind::cid, {}, {}, cid}, Process{}, "libvirt domain " + printable_command(file.substr(0, file.size() - 4), 64)));
            }
        }
    }
}

std::vector<Use> Looker::all()
{
    std::vector<Use> out = guests();
    const std::pair<const char*, std::vector<Socket>> found[] = {{"tcp", sockets(true, 0)}, {"udp", sockets(false, 0)}};
    const auto vsocks = vsock_listeners();
    std::vector<std::uint64_t> inodes;
    for (const auto& [protocol, list] : found)
    {
        for (const Socket& one : list)
        {
            if (!one.connected) { inodes.push_back(one.inode); }
        }
    }
    for (const VsockListener& one : vsocks) { inodes.push_back(one.inode); }
    find_owners(inodes);
    for (const auto& [protocol, list] : found)
    {
        for (const Socket& one : list)
        {
            if (one.connected) { continue; }
            out.push_back(use_of({Kind::port, protocol, one.address, one.port}, owner(one.inode), "listens"));
            out.back().only_v6 = one.only_v6;
        }
    }
    for (const VsockListener& one : vsocks) { out.push_back(use_of({Kind::vsock_port, {}, {}, one.port}, owner(one.inode), "listens")); }
    std::sort(inodes.begin(), inodes.end());
    std::erase_if(owners_, [&](const auto& one) { return !std::binary_search(inodes.begin(), inodes.end(), one.first); });
    return out;
}

} // namespace dstack::allocator
