#pragma once
#include <arpa/inet.h>
#include <chrono>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <regex>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/// A blocking client for a pool thread: sends exactly the bytes of a test. Every wait ends after ten seconds.
class RawClient
{
  public:
    explicit RawClient(std::uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))
    {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const int now = 1;
        setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &now, sizeof now);
        start(reinterpret_cast<const sockaddr*>(&address), sizeof address);
    }
    explicit RawClient(const std::string& path) : fd_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))
    {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.copy(address.sun_path, sizeof address.sun_path - 1);
        start(reinterpret_cast<const sockaddr*>(&address), sizeof address);
    }
    RawClient(const RawClient&) = delete;
    RawClient& operator=(const RawClient&) = delete;
    ~RawClient() { ::close(fd_); }

    bool connected() const { return connected_; }
    bool send(std::string_view bytes)
    {
        while (!bytes.empty())
        {
            const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent <= 0) { return false; }
            bytes.remove_prefix(static_cast<std::size_t>(sent));
        }
        return true;
    }
    /// Something is there to be read, be it the end.
    bool readable()
    {
        char c = 0;
        return recv(fd_, &c, 1, MSG_PEEK | MSG_DONTWAIT) >= 0;
    }
    void half_close() { shutdown(fd_, SHUT_WR); }
    /// Until `text` ends what came; "" when the peer ended first.
    std::string read_until(std::string_view text)
    {
        std::string all;
        char c = 0;
        while (!all.ends_with(text))
        {
            if (recv(fd_, &c, 1, 0) != 1) { return all + "<end>"; }
            all.push_back(c);
        }
        return all;
    }
    std::string read_bytes(std::size_t count)
    {
        std::string all(count, '\0');
        std::size_t have = 0;
        while (have < count)
        {
            const ssize_t got = recv(fd_, all.data() + have, count - have, 0);
            if (got <= 0) { break; }
            have += static_cast<std::size_t>(got);
        }
        all.resize(have);
        return all;
    }
    /// What comes until the peer ends. "<reset>" and "<timeout>" are marked.
    std::string read_all()
    {
        std::string all;
        char buffer[4096];
        while (true)
        {
            const ssize_t got = recv(fd_, buffer, sizeof buffer, 0);
            if (got == 0) { return all; }
            if (got < 0) { return all + (errno == EAGAIN ? "<timeout>" : "<reset>"); }
            all.append(buffer, static_cast<std::size_t>(got));
        }
    }
    void small_receive_buffer()
    {
        const int size = 4096;
        setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    }
    /// Closing now sends a reset.
    void reset_on_close()
    {
        const linger now{1, 0};
        setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }

  private:
    void start(const sockaddr* address, socklen_t size)
    {
        const timeval limit{10, 0};
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        connected_ = connect(fd_, address, size) == 0;
    }
    int fd_;
    bool connected_ = false;
};

/// Without the one field that changes by the second.
inline std::string undated(const std::string& text)
{
    return std::regex_replace(text, std::regex{"Date: [^\r]*\r\n"}, "");
}
