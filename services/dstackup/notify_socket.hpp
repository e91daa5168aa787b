#pragma once
#include "services/dstackup/notify.hpp"
#include "shared/base/result.hpp"
#include "shared/process/fd.hpp"
#include "shared/runtime/loop.hpp"
#include <functional>
#include <memory>
#include <optional>
#include <sys/types.h>

namespace dstack::up
{

/// A bound datagram socket of the sd_notify protocol that asks the kernel for each sender's pid.
Result<process::Fd> bind_notify_socket(const std::string& path);

struct Datagram
{
    pid_t sender = 0;
    std::string bytes{};
};
/// The next datagram; nothing when none is waiting. Descriptors that come along are closed.
std::optional<Datagram> receive_datagram(int fd);

/// The services' line to their supervisor: `on_notice(pid, notice)` on the loop, until destroyed.
class NotifySocket
{
  public:
    using OnNotice = std::function<void(pid_t sender, const Notice& notice)>;
    static Result<std::unique_ptr<NotifySocket>> open(Loop& loop, const std::string& path, OnNotice on_notice);
    ~NotifySocket();
    NotifySocket(const NotifySocket&) = delete;
    NotifySocket& operator=(const NotifySocket&) = delete;

  private:
    NotifySocket(process::Fd fd, std::string path, OnNotice on_notice)
        : fd_(std::move(fd)), path_(std::move(path)), on_notice_(std::move(on_notice))
    {
    }
    void read_all();
    process::Fd fd_;
    std::string path_;
    OnNotice on_notice_;
    UvHandle<uv_poll_t> poll_;
};

} // namespace dstack::up
