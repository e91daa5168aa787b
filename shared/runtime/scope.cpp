#include "shared/runtime/scope.hpp"
#include <list>

namespace dstack
{

struct Scope::State
{
    explicit State(Loop& loop) : idle(loop) {}
    std::list<std::coroutine_handle<>> running;
    Event idle;
};

namespace
{
/// The root of a spawned task: registered in the scope from its start to its end, destroys itself at its end.
struct Root
{
    struct promise_type
    {
        Scope::State* state = nullptr;
        std::list<std::coroutine_handle<>>::iterator self;

        struct Final
        {
            bool await_ready() const noexcept { return false; }
            void await_suspend(std::coroutine_handle<promise_type> handle) const noexcept
            {
                Scope::State& state = *handle.promise().state;
                state.running.erase(handle.promise().self);
                if (state.running.empty()) { state.idle.set(); }
                handle.destroy();
            }
            void await_resume() const noexcept {}
        };
        Root get_return_object() { return Root{std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        Final final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
    };
    std::coroutine_handle<promise_type> handle;
};

Root drive(Task<> task) { co_await task; }
} // namespace

Scope::Scope(Loop& loop) : loop_(loop), state_(std::make_unique<State>(loop)) { state_->idle.set(); }

Scope::~Scope() { cancel(); }

void Scope::spawn(Task<> task)
{
    const Root root = drive(std::move(task));
    state_->running.push_front(root.handle);
    root.handle.promise().state = state_.get();
    root.handle.promise().self = state_->running.begin();
    state_->idle.reset();
    root.handle.resume();
}

Task<> Scope::drain()
{
    co_await state_->idle.wait();
}

void Scope::cancel()
{
    // A destroyed task may hold the last reference to something that spawns or cancels: take one at a time.
    while (!state_->running.empty())
    {
        const auto handle = state_->running.front();
        state_->running.pop_front();
        handle.destroy();
    }
    state_->idle.set();
}

std::size_t Scope::size() const { return state_->running.size(); }

namespace detail
{

Race::Race(Loop& loop, milliseconds limit, Task<> task) : loop_(loop), over_(loop), scope_(loop)
{
    timer_ = make_uv<uv_timer_t>([&](uv_timer_t* h) { return uv_timer_init(loop.raw(), h); });
    timer_->data = this;
    uv_update_time(loop.raw());
    uv_timer_start(
        timer_.get(),
        [](uv_timer_t* h)
        {
            auto* self = static_cast<Race*>(h->data);
            self->scope_.cancel();
            self->over_.set();
        },
        static_cast<std::uint64_t>(limit.count() > 0 ? limit.count() : 0), 0);
    scope_.spawn(finish(std::move(task), this));
}

Race::~Race() = default;

Task<> Race::finish(Task<> task, Race* self)
{
    co_await task;
    self->ended_ = true;
    uv_timer_stop(self->timer_.get());
    self->over_.set();
}

Task<bool> Race::wait()
{
    co_await over_.wait();
    co_return ended_;
}

void start_job(Loop& loop, std::shared_ptr<Job> job)
{
    auto* owner = new std::shared_ptr<Job>(std::move(job)); // held by the request until its callback
    (*owner)->request.data = owner;
    uv_queue_work(
        loop.raw(), &(*owner)->request,
        [](uv_work_t* request) { (*static_cast<std::shared_ptr<Job>*>(request->data))->work(); },
        [](uv_work_t* request, int)
        {
            const std::unique_ptr<std::shared_ptr<Job>> self{static_cast<std::shared_ptr<Job>*>(request->data)};
            if ((*self)->done != nullptr) { (*self)->done->set(); }
        });
}

} // namespace detail

Task<AsyncMutex::Guard> AsyncMutex::lock()
{
    while (locked_)
    {
        free_.reset();
        co_await free_.wait();
    }
    locked_ = true;
    co_return Guard{this};
}

void AsyncMutex::unlock()
{
    locked_ = false;
    free_.set();
}

} // namespace dstack
