#pragma once
#include "shared/runtime/task.hpp"
#include "shared/runtime/uv_handle.hpp"
#include <chrono>
#include <cstdint>

namespace dstack
{

using std::chrono::milliseconds;

class Loop;

/// A suspended coroutine that the loop will resume. It unregisters itself when destroyed, so that a
/// coroutine that is destroyed between "ready" and "resumed" is simply gone.
class Waiter
{
  public:
    Waiter() = default;
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    ~Waiter() { unlink(); }

    std::coroutine_handle<> handle{};
    bool linked() const { return next_ != this; }
    void unlink()
    {
        prev_->next_ = next_;
        next_->prev_ = prev_;
        prev_ = next_ = this;
    }

  private:
    friend class WaitList;
    Waiter* prev_ = this;
    Waiter* next_ = this;
};

/// Intrusive first-in first-out list of waiters; owns nothing.
class WaitList
{
  public:
    bool empty() const { return !head_.linked(); }
    void push(Waiter& waiter)
    {
        waiter.unlink();
        waiter.prev_ = head_.prev_;
        waiter.next_ = &head_;
        head_.prev_->next_ = &waiter;
        head_.prev_ = &waiter;
    }
    Waiter* pop()
    {
        if (empty()) { return nullptr; }
        Waiter* first = head_.next_;
        first->unlink();
        return first;
    }

  private:
    Waiter head_;
};

/// One libuv loop: one per process, used from one thread. Resumptions go through a ready list, so that
/// waking somebody never runs their code inside the waker's stack.
class Loop
{
  public:
    Loop();
    Loop(const Loop&) = delete;
    Loop& operator=(const Loop&) = delete;
    /// Runs the close callbacks of handles that are still closing, then closes the loop.
    ~Loop();

    uv_loop_t* raw() { return &loop_; }
    /// Monotonic, updated once per loop turn.
    std::chrono::steady_clock::time_point now() const;
    /// Resumes `waiter` on the next turn of the loop (moves it from whatever list it is in).
    void ready(Waiter& waiter);
    /// Drives `main` to its end; other work goes on only as long as `main` runs.
    void run(Task<> main);

  private:
    void drain_ready();
    uv_loop_t loop_{};
    WaitList ready_;
    UvHandle<uv_idle_t> idle_;
    UvHandle<uv_check_t> check_;
};

/// `co_await sleep_for(loop, milliseconds{50});`
class Sleep
{
  public:
    Sleep(Loop& loop, milliseconds duration) : loop_(loop), duration_(duration) {}
    Sleep(const Sleep&) = delete;
    Sleep& operator=(const Sleep&) = delete;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle);
    void await_resume() const noexcept {}

  private:
    Loop& loop_;
    milliseconds duration_;
    Waiter waiter_;
    UvHandle<uv_timer_t> timer_;
};
inline Sleep sleep_for(Loop& loop, milliseconds duration) { return Sleep{loop, duration}; }

/// Gives everybody else a turn: `co_await next_turn(loop);`
class NextTurn
{
  public:
    explicit NextTurn(Loop& loop) : loop_(loop) {}
    NextTurn(const NextTurn&) = delete;
    NextTurn& operator=(const NextTurn&) = delete;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle)
    {
        waiter_.handle = handle;
        loop_.ready(waiter_);
    }
    void await_resume() const noexcept {}

  private:
    Loop& loop_;
    Waiter waiter_;
};
inline NextTurn next_turn(Loop& loop) { return NextTurn{loop}; }

/// A flag that coroutines can wait for. `set` wakes all; stays set until `reset`.
class Event
{
  public:
    explicit Event(Loop& loop) : loop_(loop) {}
    void set();
    void reset() { set_ = false; }
    bool is_set() const { return set_; }

    class Awaiter
    {
      public:
        explicit Awaiter(Event& event) : event_(event) {}
        Awaiter(const Awaiter&) = delete;
        Awaiter& operator=(const Awaiter&) = delete;
        bool await_ready() const noexcept { return event_.set_; }
        void await_suspend(std::coroutine_handle<> handle)
        {
            waiter_.handle = handle;
            event_.waiters_.push(waiter_);
        }
        void await_resume() const noexcept {}

      private:
        Event& event_;
        Waiter waiter_;
    };
    /// `co_await event.wait();`
    Awaiter wait() { return Awaiter{*this}; }
    Loop& loop() { return loop_; }

  private:
    Loop& loop_;
    WaitList waiters_;
    bool set_ = false;
};

} // namespace dstack
