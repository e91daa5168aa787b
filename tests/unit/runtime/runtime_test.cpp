#include "shared/runtime/scope.hpp"
#include "tests/catch.hpp"
#include <string>
#include <thread>
#include <vector>

using namespace dstack;

namespace
{
Task<int> ready(int value) { co_return value; }

Task<> sum_many(int n, long& out)
{
    for (int i = 0; i < n; ++i)
    {
        auto v = co_await ready(1);
        out += v;
    }
}

struct Guarded
{
    int* alive;
    explicit Guarded(int* a) : alive(a) { ++*alive; }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() { --*alive; }
};

Task<Result<int>> answer_after(Loop& loop, milliseconds delay, int value, int* alive)
{
    const Guarded guarded{alive};
    co_await sleep_for(loop, delay);
    co_return value;
}

Task<> note_after(Loop& loop, milliseconds delay, int value, std::vector<int>& order)
{
    co_await sleep_for(loop, delay);
    order.push_back(value);
}

Task<> hold(Loop& loop, AsyncMutex& mutex, int value, std::vector<int>& order)
{
    auto guard = co_await mutex.lock();
    order.push_back(value);
    co_await sleep_for(loop, milliseconds{2});
    order.push_back(value);
}
} // namespace

TEST_CASE("a million ready awaits do not grow the stack")
{
    Loop loop;
    long total = 0;
    loop.run(sum_many(1'000'000, total));
    CHECK(total == 1'000'000);
}

namespace
{
Task<> timeout_story(Loop& loop, int& alive, std::vector<std::string>& story)
{
    auto slow = answer_after(loop, milliseconds{10'000}, 1, &alive);
    auto lost = co_await with_timeout(loop, milliseconds{5}, "ask", std::move(slow));
    story.push_back(lost ? "value" : lost.error().message);
    story.push_back("alive " + std::to_string(alive));
    auto quick = answer_after(loop, milliseconds{1}, 42, &alive);
    auto won = co_await with_timeout(loop, milliseconds{10'000}, "ask", std::move(quick));
    story.push_back(won ? std::to_string(*won) : won.error().message);
}

Task<> scope_story(Loop& loop, std::vector<int>& order)
{
    Scope scope{loop};
    scope.spawn(note_after(loop, milliseconds{6}, 2, order));
    scope.spawn(note_after(loop, milliseconds{1}, 1, order));
    co_await scope.drain();
    scope.spawn(note_after(loop, milliseconds{10'000}, 3, order));
    scope.cancel();
    order.push_back(static_cast<int>(scope.size()));
}

Task<> offload_story(Loop& loop, std::thread::id& other)
{
    auto work = [] { return std::this_thread::get_id(); };
    const auto id = co_await offload(loop, work);
    other = id;
}

Task<> mutex_story(Loop& loop, std::vector<int>& order)
{
    AsyncMutex mutex{loop};
    Scope scope{loop};
    scope.spawn(hold(loop, mutex, 1, order));
    scope.spawn(hold(loop, mutex, 2, order));
    scope.spawn(hold(loop, mutex, 3, order));
    co_await scope.drain();
}
} // namespace

TEST_CASE("a timeout destroys the task and says what took too long")
{
    Loop loop;
    int alive = 0;
    std::vector<std::string> story;
    loop.run(timeout_story(loop, alive, story));
    CHECK(story == std::vector<std::string>{"ask: no answer within 5 ms", "alive 0", "42"});
}

TEST_CASE("a scope drains what ends and cancels what does not")
{
    Loop loop;
    std::vector<int> order;
    loop.run(scope_story(loop, order));
    CHECK(order == std::vector<int>{1, 2, 0});
}

TEST_CASE("offload runs on another thread")
{
    Loop loop;
    std::thread::id other;
    loop.run(offload_story(loop, other));
    CHECK(other != std::this_thread::get_id());
}

TEST_CASE("the mutex has one holder at a time, in order")
{
    Loop loop;
    std::vector<int> order;
    loop.run(mutex_story(loop, order));
    CHECK(order == std::vector<int>{1, 1, 2, 2, 3, 3});
}
