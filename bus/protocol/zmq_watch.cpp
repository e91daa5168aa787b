#include "bus/protocol/zmq_watch.hpp"

namespace dstack::bus
{

ZmqWatch::ZmqWatch(Loop& loop, zmq::socket_t& socket, std::function<void()> on_readable)
    : socket_(socket), on_readable_(std::move(on_readable)),
      prepare_(make_uv<uv_prepare_t>([&](uv_prepare_t* h) { return uv_prepare_init(loop.raw(), h); })),
      check_(make_uv<uv_check_t>([&](uv_check_t* h) { return uv_check_init(loop.raw(), h); })),
      idle_(make_uv<uv_idle_t>([&](uv_idle_t* h) { return uv_idle_init(loop.raw(), h); })),
      poll_(make_uv<uv_poll_t>([&](uv_poll_t* h) { return uv_poll_init(loop.raw(), h, socket_.get(zmq::sockopt::fd)); }))
{
    prepare_->data = check_->data = poll_->data = this;
    uv_poll_start(poll_.get(), UV_READABLE, [](uv_poll_t* h, int, int) { static_cast<ZmqWatch*>(h->data)->woken_ = true; });
    uv_prepare_start(prepare_.get(),
                     [](uv_prepare_t* h)
                     {
                         auto* self = static_cast<ZmqWatch*>(h->data);
                         if (!self->readable()) { return; }
                         self->woken_ = true;
                         uv_idle_start(self->idle_.get(), [](uv_idle_t*) {}); // do not sleep
                     });
    uv_check_start(check_.get(),
                   [](uv_check_t* h)
                   {
                       auto* self = static_cast<ZmqWatch*>(h->data);
                       if (!std::exchange(self->woken_, false)) { return; } // nothing since prepare: reading ZMQ_EVENTS is a system call
                       uv_idle_stop(self->idle_.get());
                       if (self->readable()) { self->on_readable_(); } // may destroy self: nothing after
                   });
}

} // namespace dstack::bus
