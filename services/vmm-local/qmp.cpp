#include "services/vmm-local/qmp.hpp"
#include "shared/process/fd.hpp"
#include "shared/process/fd_ready.hpp"
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <optional>
#include <sys/socket.h>
#include <sys/un.h>

namespace dstack::vmm
{

namespace
{
using nlohmann::json;
constexpr std::size_t max_line = 256 * 1024;

std::string text_of(const json& object, const char* key)
{
    if (!object.is_object()) { return {}; }
    const auto it = object.find(key);
    return it != object.end() && it->is_string() ? *it->get_ptr<const std::string*>() : std::string{};
}

/// A connected socket, or the errno class that says whether trying again makes sense.
Result<process::Fd> connect_once(const std::string& directory)
{
    const process::Fd dir{open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
    if (!dir) { return errno_error("open " + directory, errno); }
    process::Fd fd{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (!fd) { return errno_error("qmp socket", errno); }
    // A socket's address has room for 107 bytes; through the directory's descriptor any path fits.
    const std::string path = "/proc/self/fd/" + std::to_string(dir.get()) + "/qmp.sock";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    {
        return errno_error("connect to qemu's monitor", errno);
    }
    return fd;
}
} // namespace

struct Qmp::Impl
{
    Impl(Loop& l, process::Fd f) : loop(l), fd(std::move(f)), ready(l, fd.get()), answered(l), ended(l), reader(l) {}
    Loop& loop;
    process::Fd fd;
    process::FdReady ready;
    std::string buffer;
    std::string reason;
    std::optional<Result<std::string>> answer;
    bool greeted = false;
    Event answered;
    Event ended;
    Scope reader; // last: its task uses everything above

    void line(std::string_view text)
    {
        const json message = json::parse(text, nullptr, false);
        if (!message.is_object()) { return; }
        if (message.contains("QMP"))
        {
            greeted = true;
            answered.set();
        }
        else if (const auto value = message.find("return"); value != message.end())
        {
            answer.emplace(value->dump());
            answered.set();
        }
        else if (const auto error = message.find("error"); error != message.end())
        {
            answer.emplace(Error{Errc::failed_precondition, "qemu: " + text_of(*error, "desc"), {}, {}});
            answered.set();
        }
        else if (text_of(message, "event") == "SHUTDOWN" && message.contains("data"))
        {
            reason = text_of(message.find("data").value(), "reason");
        }
    }

    /// False at the end of the connection.
    bool take()
    {
        std::array<char, 16 * 1024> piece{};
        const ssize_t n = read(fd.get(), piece.data(), piece.size());
        if (n < 0) { return errno == EAGAIN || errno == EINTR; }
        if (n == 0) { return false; }
        buffer.append(piece.data(), static_cast<std::size_t>(n));
        for (auto end = buffer.find('\n'); end != std::string::npos; end = buffer.find('\n'))
        {
            line(std::string_view{buffer}.substr(0, end));
            buffer.erase(0, end + 1);
        }
        return buffer.size() <= max_line;
    }

    static Task<> read_all(Impl* self)
    {
        bool more = static_cast<bool>(self->ready);
        while (more)
        {
            self->ready.arm();
            co_await self->ready.wait();
            more = self->take();
        }
        self->ended.set();
        self->answered.set();
    }

    Task<Result<Done>> until_greeted()
    {
        co_await answered.wait();
        if (!greeted) { co_return Error{Errc::unavailable, "qemu closed its monitor", {}, {}}; }
        co_return Done{};
    }

    Task<Result<std::string>> ask(std::string command)
    {
        answered.reset();
        answer.reset();
        const std::string text = "{\"execute\":\"" + command + "\"}\r\n";
        if (ended.is_set() || send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size()))
        {
            co_return Error{Errc::unavailable, "qemu's monitor is gone", {}, {}};
        }
        co_await answered.wait();
        if (!answer) { co_return Error{Errc::unavailable, "qemu closed its monitor", {}, {}}; }
        co_return std::move(*answer);
    }
};

Qmp::Qmp(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Qmp::~Qmp() = default;
const std::string& Qmp::shutdown_reason() const { return impl_->reason; }
bool Qmp::closed() const { return impl_->ended.is_set(); }

Task<> Qmp::until_closed()
{
    co_await impl_->ended.wait();
}

Task<Result<std::string>> Qmp::execute(std::string command, milliseconds limit)
{
    std::string what = "qemu " + command;
    auto asking = impl_->ask(std::move(command));
    auto bounded = with_timeout(impl_->loop, limit, std::move(what), std::move(asking));
    co_return co_await bounded;
}

Task<Result<std::unique_ptr<Qmp>>> Qmp::connect(Loop& loop, std::string directory, milliseconds limit)
{
    const auto deadline = loop.now() + limit;
    auto fd = connect_once(directory);
    while (!fd && loop.now() < deadline) // not there yet, or the last VMM's connection is still being closed
    {
        co_await sleep_for(loop, milliseconds{5});
        fd = connect_once(directory);
    }
    if (!fd) { co_return std::move(fd).error(); }
    auto impl = std::make_unique<Impl>(loop, std::move(*fd));
    if (!impl->ready) { co_return Error{Errc::internal, "cannot watch qemu's monitor", {}, {}}; }
    impl->reader.spawn(Impl::read_all(impl.get()));
    auto greeting = impl->until_greeted();
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - loop.now()) + milliseconds{100};
    auto bounded = with_timeout(loop, left, "qemu's monitor", std::move(greeting));
    auto greeted = co_await bounded;
    if (!greeted) { co_return std::move(greeted).error(); }
    auto qmp = std::unique_ptr<Qmp>{new Qmp{std::move(impl)}};
    auto negotiated = co_await qmp->execute("qmp_capabilities", limit);
    if (!negotiated) { co_return std::move(negotiated).error(); }
    co_return std::move(qmp);
}

} // namespace dstack::vmm
