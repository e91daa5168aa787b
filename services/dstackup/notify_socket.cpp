#include "services/dstackup/notify_socket.hpp"
#include <array>
#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace dstack::up
{

namespace
{
constexpr int datagrams_per_turn = 64; // a chatty service must not starve the others
}

Result<process::Fd> bind_notify_socket(const std::string& path)
{
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path)
    {
        return Error{
            Errc::invalid_argument, path + ": too long for a socket's path (107 bytes)", "take a shorter --prefix", {}};
    }
    std::memcpy(address.sun_path, path.data(), path.size());
    process::Fd fd{socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (!fd) { return errno_error("socket", errno); }
    const int yes = 1;
    if (setsockopt(fd.get(), SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes) != 0)
    {
        return errno_error("SO_PASSCRED", errno);
    }
    unlink(path.c_str()); // of a supervisor that is gone: the caller holds the lock
    if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    {
        return errno_error("bind " + path, errno);
    }
    return fd;
}

std::optional<Datagram> receive_datagram(int fd)
{
    std::array<char, 4096> buffer{};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(16 * sizeof(int))> control{};
    iovec part{buffer.data(), buffer.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    ssize_t got = 0;
    do {
        got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    if (got < 0) { return std::nullopt; }
    Datagram out;
    out.bytes.assign(buffer.data(), static_cast<std::size_t>(got));
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c))
    {
        if (c->cmsg_level != SOL_SOCKET) { continue; }
        if (c->cmsg_type == SCM_CREDENTIALS)
        {
            ucred who{};
            std::memcpy(&who, CMSG_DATA(c), sizeof who);
            out.sender = who.pid;
        }
        else if (c->cmsg_type == SCM_RIGHTS)
        {
            for (std::size_t at = 0; CMSG_LEN(at + sizeof(int)) <= c->cmsg_len; at += sizeof(int))
            {
                int passed = -1;
                std::memcpy(&passed, CMSG_DATA(c) + at, sizeof passed);
                close(passed);
            }
        }
    }
    return out;
}

Result<std::unique_ptr<NotifySocket>> NotifySocket::open(Loop& loop, const std::string& path, OnNotice on_notice)
{
    auto fd = bind_notify_socket(path);
    if (!fd) { return std::move(fd).error(); }
    std::unique_ptr<NotifySocket> self{new NotifySocket(std::move(*fd), path, std::move(on_notice))};
    self->poll_ = make_uv<uv_poll_t>([&](uv_poll_t* h) { return uv_poll_init(loop.raw(), h, self->fd_.get()); });
    if (!self->poll_) { return Error{Errc::internal, "cannot watch " + path, {}, {}}; }
    self->poll_->data = self.get();
    uv_poll_start(self->poll_.get(), UV_READABLE,
                  [](uv_poll_t* h, int, int) { static_cast<NotifySocket*>(h->data)->read_all(); });
    return self;
}

NotifySocket::~NotifySocket() { unlink(path_.c_str()); }

void NotifySocket::read_all()
{
    for (int i = 0; i < datagrams_per_turn; ++i)
    {
        const auto datagram = receive_datagram(fd_.get());
        if (!datagram) { return; }
        on_notice_(datagram->sender, parse_notice(datagram->bytes));
    }
}

} // namespace dstack::up
