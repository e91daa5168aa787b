#pragma once
#include "shared/base/result.hpp"
#include "shared/runtime/loop.hpp"
#include <functional>
#include <memory>
#include <type_traits>

namespace dstack
{

/// Owns running tasks: nothing that was spawned outlives its scope. The destructor and `cancel` destroy what
/// is still suspended; `drain` waits for it to end by itself.
/// A scope must not be destroyed or cancelled by one of its own tasks.
class Scope
{
  public:
    explicit Scope(Loop& loop);
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope();

    /// Starts `task` now, inside the caller's stack, up to its first suspension.
    void spawn(Task<> task);
    /// Completes when no task is left.
    Task<> drain();
    /// Destroys every task that is still running.
    void cancel();
    std::size_t size() const;
    Loop& loop() { return loop_; }

    struct State; ///< lives as long as the scope; known to the root coroutines in scope.cpp

  private:
    Loop& loop_;
    std::unique_ptr<State> state_;
};

namespace detail
{
/// Runs one task against the clock; see with_timeout.
class Race
{
  public:
    Race(Loop& loop, milliseconds limit, Task<> task);
    ~Race();
    /// True when the task ended, false when the time was over first (the task is destroyed then).
    Task<bool> wait();

  private:
    static Task<> finish(Task<> task, Race* self);
    Loop& loop_;
    Event over_;
    bool ended_ = false;
    Scope scope_;
    UvHandle<uv_timer_t> timer_;
};

template <class T>
Task<> store(Task<Result<T>> task, std::optional<Result<T>>* out)
{
    auto value = co_await task;
    out->emplace(std::move(value));
}
} // namespace detail

/// Destroys `task` and returns deadline_exceeded ("<what>: no answer within 500 ms") when it takes longer.
template <class T>
Task<Result<T>> with_timeout(Loop& loop, milliseconds limit, std::string what, Task<Result<T>> task)
{
    std::optional<Result<T>> value;
    detail::Race race{loop, limit, detail::store(std::move(task), &value)};
    const bool in_time = co_await race.wait();
    if (!in_time)
    {
        Error error{Errc::deadline_exceeded, std::move(what), {}, {}};
        error.message += ": no answer within " + std::to_string(limit.count()) + " ms";
        co_return error;
    }
    co_return std::move(*value);
}

namespace detail
{
/// A job on libuv's thread pool whose state outlives both the job and the one who waits for it.
struct Job
{
    uv_work_t request{};
    std::function<void()> work;
    Event* done = nullptr;
};
void start_job(Loop& loop, std::shared_ptr<Job> job);
} // namespace detail

/// Runs `work()` on a pool thread and returns its result. `work` must own all that it touches: when the
/// caller is cancelled the work still ends, and its result is dropped.
template <class F>
Task<std::invoke_result_t<F>> offload(Loop& loop, F work)
{
    using T = std::invoke_result_t<F>;
    auto value = std::make_shared<std::optional<T>>();
    auto job = std::make_shared<detail::Job>();
    job->work = [value, work = std::move(work)]() mutable { value->emplace(work()); };
    Event done{loop};
    job->done = &done;
    struct Forget // a cancelled caller takes its event away before the job ends
    {
        detail::Job& job;
        ~Forget() { job.done = nullptr; }
    } forget{*job};
    detail::start_job(loop, job);
    co_await done.wait();
    co_return std::move(**value);
}

/// First come, first served; one holder at a time. `auto guard = co_await mutex.lock();`
class AsyncMutex
{
  public:
    explicit AsyncMutex(Loop& loop) : loop_(loop) {}
    class Guard
    {
      public:
        explicit Guard(AsyncMutex* mutex) : mutex_(mutex) {}
        Guard(Guard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
        Guard& operator=(Guard&&) = delete;
        ~Guard()
        {
            if (mutex_ != nullptr) { mutex_->unlock(); }
        }

      private:
        AsyncMutex* mutex_;
    };
    Task<Guard> lock();
    bool locked() const { return locked_; }

  private:
    void unlock();
    Loop& loop_;
    Event free_{loop_};
    bool locked_ = false;
};

} // namespace dstack
