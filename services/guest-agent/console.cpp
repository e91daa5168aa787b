#include "services/guest-agent/console.hpp"
#include <cerrno>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

namespace dstack::guest
{

Console::Console(Loop& loop) : fd_(::open("/dev/console", O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)), room_(loop)
{
    room_.set();
    if (fd_.get() < 0) { return; }
    poll_ = make_uv<uv_poll_t>([&](uv_poll_t* h) { return uv_poll_init(loop.raw(), h, fd_.get()); });
    if (poll_) { poll_->data = this; }
}

Console::~Console() { flush(); }

void Console::write(std::string_view text)
{
    queue_ += text;
    drain();
}

void Console::drain()
{
    while (!queue_.empty())
    {
        const ssize_t done = ::write(fd_.get(), queue_.data(), queue_.size());
        if (done < 0 && errno == EINTR) { continue; }
        if (done < 0 && errno == EAGAIN && poll_)
        {
            uv_poll_start(poll_.get(), UV_WRITABLE,
                          [](uv_poll_t* h, int, int) { static_cast<Console*>(h->data)->drain(); });
            if (full()) { room_.reset(); }
            return;
        }
        if (done <= 0) { queue_.clear(); } // no console: nobody reads it
        else { queue_.erase(0, static_cast<std::size_t>(done)); }
    }
    if (poll_) { uv_poll_stop(poll_.get()); }
    room_.set();
}

void Console::flush()
{
    for (int waits = 0; !queue_.empty() && waits < 10; ++waits)
    {
        drain();
        if (queue_.empty()) { break; }
        pollfd wait{fd_.get(), POLLOUT, 0};
        ::poll(&wait, 1, 100);
    }
}

} // namespace dstack::guest
