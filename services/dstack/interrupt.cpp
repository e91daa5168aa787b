#include "services/dstack/interrupt.hpp"
#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <unistd.h>

namespace dstack::cli
{

namespace
{
// A signal handler reaches nothing but what is global, and may call little more than write(2).
std::array<char, 501> last_words{};
std::atomic<std::size_t> last_words_size{0};
static_assert(std::atomic<std::size_t>::is_always_lock_free);

void leave(int signal)
{
    const std::size_t size = last_words_size;
    if (size > 0 && ::write(STDERR_FILENO, last_words.data(), size) < 0) { ::_exit(128 + signal); }
    ::_exit(128 + signal);
}
} // namespace

void leave_on_signals()
{
    std::signal(SIGINT, leave);
    std::signal(SIGTERM, leave);
}

void say_when_interrupted(std::string_view line)
{
    last_words_size = 0; // a signal in the middle of this says nothing
    const std::size_t size = line.copy(last_words.data(), last_words.size() - 1);
    last_words[size] = '\n';
    last_words_size = size + 1;
}

} // namespace dstack::cli
