#pragma once
#include "services/allocator/process_facts.hpp"
#include "services/allocator/socket_table.hpp"
#include <map>
#include <unordered_map>

namespace dstack::allocator
{

/// A process, as far as this user may see it.
struct Process
{
    long pid = 0; ///< 0: it cannot be seen
    std::string name{};
    std::string unit{};    ///< systemd unit or control group
    std::string command{}; ///< printable, cut
    std::vector<std::uint32_t> cids{};  ///< of its guests, when it is a VMM
    std::vector<Resource> forwards{};   ///< ports that it forwards to its guest
    std::string text() const; ///< "nginx, pid 812 (nginx.service)"
};

/// Something of the host that somebody uses now.
struct Use
{
    Resource resource;
    std::uint32_t last = 0; ///< of a range; else the same as the value
    Process process{};
    std::string why{};    ///< "listens", "guest of QEMU", "cid pool of dstack-vmm (/etc/vmm/vmm.toml)"
    bool only_v6 = false; ///< "::" that leaves IPv4 alone
    bool in_the_way_of(const Resource& wanted) const;
};

/// Looks at the kernel and at /proc. Remembers what it saw, so that the next look reads only what is new. Blocks; one
/// thread at a time.
class Looker
{
  public:
    explicit Looker(std::string proc = "/proc");
    ~Looker();
    Looker(const Looker&) = delete;
    Looker& operator=(const Looker&) = delete;

    /// Everything, with the processes behind it.
    std::vector<Use> all();
    /// CIDs and pools of VMMs only.
    std::vector<Use> guests();
    /// Sockets that hold this port; without the processes when `owners` is false.
    std::vector<Use> port(const std::string& protocol, std::uint16_t port, bool owners);
    std::vector<Use> vsock(std::uint32_t port);

  private:
    struct Seen
    {
        std::uint64_t proc_inode = 0; ///< of /proc/PID: another process has another
        std::int64_t first_ms = 0;    ///< when it was first seen
        std::int64_t read_ms = 0;     ///< when its command line was read
        bool interesting = false;     ///< it has guests, ports for them, or is a dstack-vmm
        bool vmm = false;
        std::string command_line{}; ///< of an interesting one
    };
    void scan_processes();
    void read_command_line(long pid, Seen& seen, std::int64_t now_ms);
    std::vector<Socket> sockets(bool tcp, std::uint16_t port);
    bool dump(std::uint8_t family, bool tcp, std::uint16_t port, std::vector<Socket>& out);
    std::vector<VsockListener> vsock_listeners();
    /// Whose sockets these are.
    void find_owners(const std::vector<std::uint64_t>& inodes);
    void read_descriptors(long pid, std::vector<std::uint64_t>& wanted);
    const Process& process(long pid);
    Process owner(std::uint64_t inode);
    void add_pools(std::vector<Use>& out);
    void add_libvirt(std::vector<Use>& out);

    std::string proc_;
    int proc_fd_ = -1;
    int diag_fd_ = -1;
    std::string buffer_;
    std::unordered_map<long, Seen> seen_;
    std::unordered_map<std::uint64_t, long> owners_;          ///< socket inode to pid; 0: nobody whom we may see
    std::unordered_map<long, std::pair<std::uint64_t, Process>> described_; ///< with the inode of /proc/PID
};

} // namespace dstack::allocator
