#pragma once
#include <coroutine>
#include <cstdlib>
#include <exception>
#include <optional>
#include <utility>

namespace dstack
{

namespace detail
{

/// What all promises share. A child that completes at once is consumed without suspending its parent,
/// and one that completes later resumes it from its final suspend point: no symmetric transfer is needed,
/// so a long loop over ready awaits does not grow the stack on any compiler or under any sanitizer.
struct PromiseBase
{
    std::coroutine_handle<> continuation{};
    bool finished = false;

    struct FinalAwaiter
    {
        bool await_ready() const noexcept { return false; }
        template <class Promise>
        void await_suspend(std::coroutine_handle<Promise> handle) const noexcept
        {
            PromiseBase& promise = handle.promise();
            promise.finished = true;
            const auto parent = promise.continuation;
            if (parent) { parent.resume(); } // may destroy this frame: touch nothing after
        }
        void await_resume() const noexcept {}
    };

    std::suspend_always initial_suspend() const noexcept { return {}; }
    FinalAwaiter final_suspend() const noexcept { return {}; }
    /// Errors are values; an exception that reaches a coroutine's edge is a bug.
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
};

template <class T>
struct Promise : PromiseBase
{
    std::optional<T> value;
    template <class U>
    void return_value(U&& v)
    {
        value.emplace(std::forward<U>(v));
    }
    T take() { return std::move(*value); }
};

template <>
struct Promise<void> : PromiseBase
{
    void return_void() const noexcept {}
    void take() const noexcept {}
};

} // namespace detail

/// A lazy coroutine: starts when awaited, is awaited exactly once, is owned by one object and runs on one thread.
/// Destroying a suspended Task cancels it: every awaiter in the tree unregisters in its destructor.
template <class T = void>
class [[nodiscard]] Task
{
  public:
    struct promise_type : detail::Promise<T>
    {
        Task get_return_object() { return Task{std::coroutine_handle<promise_type>::from_promise(*this)}; }
    };

    Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Task& operator=(Task&&) = delete;
    ~Task()
    {
        if (handle_) { handle_.destroy(); }
    }

    struct Awaiter
    {
        std::coroutine_handle<promise_type> handle;
        bool await_ready() const noexcept { return false; }
        bool await_suspend(std::coroutine_handle<> parent) const
        {
            handle.resume();
            if (handle.promise().finished) { return false; }
            handle.promise().continuation = parent;
            return true;
        }
        T await_resume() const { return handle.promise().take(); }
    };
    Awaiter operator co_await() && noexcept { return Awaiter{handle_}; }
    Awaiter operator co_await() & noexcept { return Awaiter{handle_}; }

    /// For tests: drives a task whose awaits never suspend, and returns its value.
    T run_ready() &&
    {
        handle_.resume();
        if (!handle_.promise().finished) { std::abort(); }
        return handle_.promise().take();
    }

  private:
    explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
    std::coroutine_handle<promise_type> handle_;
};

} // namespace dstack
