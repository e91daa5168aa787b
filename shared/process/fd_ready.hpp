#pragma once
#include "shared/runtime/loop.hpp"

namespace dstack::process
{

/// Tells when a descriptor becomes readable. Destroy it before the descriptor is closed.
class FdReady
{
  public:
    FdReady(Loop& loop, int fd) : readable_(loop)
    {
        poll_ = make_uv<uv_poll_t>([&](uv_poll_t* h) { return uv_poll_init(loop.raw(), h, fd); });
        if (poll_) { poll_->data = this; }
    }
    FdReady(const FdReady&) = delete;
    FdReady& operator=(const FdReady&) = delete;
    explicit operator bool() const { return poll_ != nullptr; }
    /// Wakes everybody who waits, then is quiet until armed again.
    void arm()
    {
        readable_.reset();
        uv_poll_start(poll_.get(), UV_READABLE,
                      [](uv_poll_t* h, int, int)
                      {
                          auto* self = static_cast<FdReady*>(h->data);
                          uv_poll_stop(h);
                          self->readable_.set();
                      });
    }
    Event::Awaiter wait() { return readable_.wait(); }
    bool is_set() const { return readable_.is_set(); }

  private:
    Event readable_;
    UvHandle<uv_poll_t> poll_;
};

} // namespace dstack::process
