// dstack bus services | top
#include "services/dstack/bus_view.hpp"
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/verbs.hpp"
#include "shared/base/time.hpp"
#include <sys/ioctl.h>
#include <unistd.h>

namespace dstack::cli
{

namespace
{
constexpr milliseconds refresh{1'000};

/// Lines of the terminal; 0 when there is none.
std::size_t terminal_rows()
{
    winsize size{};
    return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_row : 0;
}

/// Draws over what was there, without a flicker: each line erases its rest, the end erases what is below.
std::string frame_of(const std::string& text)
{
    std::string out = "\x1b[H";
    for (const char c : text)
    {
        if (c == '\n') { out += "\x1b[K"; }
        out += c;
    }
    return out + "\x1b[J";
}

Task<Result<schema::BusStats::Reply>> ask(Session& session)
{
    schema::BusStats question;
    auto options = session.call_options();
    co_return co_await session.bus().call(std::move(question), std::move(options));
}
} // namespace

Task<int> bus_services(Session& session)
{
    schema::BusServices question;
    auto options = session.call_options();
    auto reply = co_await session.bus().call(std::move(question), std::move(options));
    if (!reply) { co_return session.fail(reply.error()); }
    session.out(session.options().json ? document("bus_services", bus_services_json(*reply)) : bus_services_text(*reply, unix_ms()));
    co_return exit_ok;
}

/// On a terminal until it is ended; else one look, over one second.
Task<int> bus_top(Session& session)
{
    const bool live = !session.options().json && ::isatty(STDOUT_FILENO) == 1;
    auto before = co_await ask(session);
    if (!before) { co_return session.fail(before.error()); }
    if (live) { session.watch_reader(); }
    for (;;)
    {
        co_await sleep_for(session.loop(), refresh);
        auto now = co_await ask(session);
        if (!now) { co_return session.fail(now.error()); }
        const BusTop top = compare(*before, *now);
        if (live)
        {
            const std::size_t rows = terminal_rows();
            session.out(frame_of(top_text(top, rows > 1 ? rows - 1 : 0)), true);
            before = std::move(now);
            continue;
        }
        session.out(session.options().json ? document("bus_top", top_json(top)) : top_text(top, 0));
        co_return exit_ok;
    }
}

} // namespace dstack::cli
