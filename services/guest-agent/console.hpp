#pragma once
#include "shared/process/fd.hpp"
#include "shared/runtime/loop.hpp"
#include <string>
#include <string_view>

namespace dstack::guest
{

/// Writes to the serial console without ever blocking the loop: a slow console slows the containers that talk, nothing
/// else.
class Console
{
  public:
    explicit Console(Loop& loop);
    ~Console();
    Console(const Console&) = delete;
    Console& operator=(const Console&) = delete;

    void write(std::string_view text);
    bool full() const { return queue_.size() >= max_queue; }
    /// Completes when the queue has room again.
    Event::Awaiter room() { return room_.wait(); }
    /// Writes what is queued, blocking for at most a second: for the last words.
    void flush();

  private:
    static constexpr std::size_t max_queue = 64 * 1024;
    void drain();
    process::Fd fd_;
    std::string queue_;
    Event room_;
    UvHandle<uv_poll_t> poll_;
};

} // namespace dstack::guest
