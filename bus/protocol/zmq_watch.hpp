#pragma once
#include "shared/runtime/loop.hpp"
#include <functional>
#include <zmq.hpp>

namespace dstack::bus
{

/// Level-triggered view of a ZeroMQ socket for the loop.
///
/// ZMQ_FD is edge-triggered and any send or receive may swallow the edge, so ZMQ_EVENTS is read before
/// the loop sleeps (prepare), and again after it wakes (check) when there was something or the fd became readable. `on_readable` should receive a
/// bounded batch and return, so that a busy peer starves neither timers nor HTTP; it is called again while there is more.
class ZmqWatch
{
  public:
    ZmqWatch(Loop& loop, zmq::socket_t& socket, std::function<void()> on_readable);
    ZmqWatch(const ZmqWatch&) = delete;
    ZmqWatch& operator=(const ZmqWatch&) = delete;

  private:
    bool readable() const { return (socket_.get(zmq::sockopt::events) & ZMQ_POLLIN) != 0; }
    zmq::socket_t& socket_;
    std::function<void()> on_readable_;
    bool woken_ = false;
    UvHandle<uv_prepare_t> prepare_;
    UvHandle<uv_check_t> check_;
    UvHandle<uv_idle_t> idle_;
    UvHandle<uv_poll_t> poll_;
};

} // namespace dstack::bus
