#include "shared/runtime/loop.hpp"

namespace dstack
{

Loop::Loop()
{
    if (uv_loop_init(&loop_) != 0) { std::abort(); }
    idle_ = make_uv<uv_idle_t>([&](uv_idle_t* h) { return uv_idle_init(&loop_, h); });
    check_ = make_uv<uv_check_t>([&](uv_check_t* h) { return uv_check_init(&loop_, h); });
    check_->data = this;
    uv_check_start(check_.get(), [](uv_check_t* h) { static_cast<Loop*>(h->data)->drain_ready(); });
    uv_unref(reinterpret_cast<uv_handle_t*>(check_.get()));
}

Loop::~Loop()
{
    idle_.reset();
    check_.reset();
    // Close callbacks, and work that was already handed to the thread pool. A handle that somebody still owns would
    // make this spin for ever, so it is a bug that aborts.
    for (int turns = 0; uv_loop_close(&loop_) == UV_EBUSY; ++turns)
    {
        if (turns > 1000) { std::abort(); }
        uv_run(&loop_, UV_RUN_DEFAULT);
    }
}

std::chrono::steady_clock::time_point Loop::now() const
{
    return std::chrono::steady_clock::time_point{milliseconds{uv_now(&loop_)}};
}

void Loop::ready(Waiter& waiter)
{
    ready_.push(waiter);
    // An active idle handle keeps the loop from sleeping; the check phase then drains the list.
    uv_idle_start(idle_.get(), [](uv_idle_t*) {});
}

void Loop::drain_ready()
{
    // Only what is ready now: a coroutine that keeps itself ready must not starve timers and sockets.
    WaitList batch;
    while (Waiter* waiter = ready_.pop()) { batch.push(*waiter); }
    while (Waiter* waiter = batch.pop()) { waiter->handle.resume(); }
    if (ready_.empty()) { uv_idle_stop(idle_.get()); }
}

namespace
{
/// The root of everything that runs: owns the main task and says when it is over.
struct Root
{
    struct promise_type
    {
        Root get_return_object() { return Root{std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        std::suspend_always final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
    };
    std::coroutine_handle<promise_type> handle;
};

Root drive(uv_loop_t* loop, Task<> main, bool& over)
{
    co_await main;
    over = true;
    uv_stop(loop);
}
} // namespace

void Loop::run(Task<> main)
{
    bool over = false;
    const Root root = drive(&loop_, std::move(main), over);
    root.handle.resume();
    // The keep-alive makes a loop with nothing else to do wait for the main task instead of spinning.
    auto keep_alive = make_uv<uv_async_t>([&](uv_async_t* h) { return uv_async_init(&loop_, h, nullptr); });
    while (!over) { uv_run(&loop_, UV_RUN_DEFAULT); }
    root.handle.destroy();
}

void Sleep::await_suspend(std::coroutine_handle<> handle)
{
    waiter_.handle = handle;
    timer_ = make_uv<uv_timer_t>([&](uv_timer_t* h) { return uv_timer_init(loop_.raw(), h); });
    timer_->data = this;
    const auto timeout = static_cast<std::uint64_t>(duration_.count() > 0 ? duration_.count() : 0);
    uv_update_time(loop_.raw());
    uv_timer_start(
        timer_.get(),
        [](uv_timer_t* h)
        {
            auto* self = static_cast<Sleep*>(h->data);
            self->loop_.ready(self->waiter_);
        },
        timeout, 0);
}

void Event::set()
{
    set_ = true;
    while (Waiter* waiter = waiters_.pop()) { loop_.ready(*waiter); }
}

} // namespace dstack
