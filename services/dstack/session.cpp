#include "services/dstack/session.hpp"
#include "bus/client/join.hpp"
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/text.hpp"
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace dstack::cli
{

namespace
{
constexpr const char* system_bus = "/run/dstack/bus";
constexpr const char* development_bus = "/var/lib/dstack-dev/run/dstack/bus";
constexpr const char* start_it = "start it: `dstackup dev up`, or `systemctl start dstack.target`";

bool exists(const std::string& path)
{
    struct stat facts = {};
    return ::stat(path.c_str(), &facts) == 0;
}

void write_error(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stderr); }
} // namespace

std::string bus_directory(const std::string& prefix, const char* environment_prefix)
{
    if (!prefix.empty()) { return prefix + "/run/dstack/bus"; }
    if (environment_prefix != nullptr && *environment_prefix != '\0') { return std::string{environment_prefix} + "/run/dstack/bus"; }
    return exists(system_bus) ? system_bus : development_bus;
}

Result<bus::ClientConfig> locate_bus(const Options& options)
{
    const auto wish = [&options](const std::string& flag, const char* variable) -> std::string
    {
        const char* value = options.prefix.empty() ? std::getenv(variable) : nullptr;
        return !flag.empty() || value == nullptr ? flag : value;
    };
    const std::string host = wish(options.host, "DSTACK_HOST");
    const std::string token_file = wish(options.token_file, "DSTACK_TOKEN_FILE");
    bus::ClientConfig out;
    if (host.empty() && token_file.empty())
    {
        out.directory = bus_directory(options.prefix, std::getenv("DSTACK_PREFIX"));
        return out;
    }
    if (token_file.empty())
    {
        return Error{Errc::invalid_argument, "--host " + host + " needs a token", "on that host: dstackup token create NAME --out FILE; here: --token-file FILE", {}};
    }
    auto join = bus::read_token_file(token_file);
    if (!join) { return std::move(join).error(); }
    if (!host.empty())
    {
        auto endpoint = bus::parse_endpoint(host);
        if (!endpoint) { return std::move(endpoint).error().within("DSTACK_HOST"); }
        join->endpoint = std::move(*endpoint);
    }
    out.remote = std::make_shared<const bus::Join>(std::move(*join));
    return out;
}

Result<Done> check_bus(const std::string& directory)
{
    const std::string path = directory + "/commands.sock";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) { return Error{Errc::invalid_argument, path + ": too long for a socket", {}, {}}; }
    path.copy(address.sun_path, path.size());
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) { return errno_error("socket", errno); }
    const int rc = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
    const int why = errno;
    ::close(fd);
    if (rc == 0 || why == EAGAIN || why == EINPROGRESS) { return Done{}; }
    if (why == ENOENT) { return Error{Errc::unavailable, "the bus is not there: " + path + " does not exist", start_it, {}}; }
    if (why == ECONNREFUSED) { return Error{Errc::unavailable, "the bus does not run: nobody listens on " + path, start_it, {}}; }
    if (why == EACCES || why == EPERM)
    {
        return Error{Errc::permission_denied, "the bus: " + path + ": permission denied", "become a member of the group dstack, or run as root", {}};
    }
    return errno_error("the bus: " + path, why);
}

Session::Session(Loop& loop, Options options)
    : loop_(loop), options_(std::move(options)), where_(locate_bus(options_)),
      client_(loop, where_ ? *where_ : bus::ClientConfig{})
{
}

Task<Result<Done>> Session::connect()
{
    if (!where_) { co_return where_.error(); }
    if (!where_->remote)
    {
        auto there = check_bus(where_->directory);
        if (!there) { co_return std::move(there).error(); }
    }
    const milliseconds limit{3'000};
    co_return co_await client_.connect(limit);
}

bus::CallOptions Session::call_options(std::uint64_t default_ms) const
{
    bus::CallOptions options;
    options.traceparent = traceparent_;
    const std::uint64_t limit = options_.timeout_ms != 0 ? options_.timeout_ms : default_ms;
    options.deadline = milliseconds{static_cast<std::int64_t>(std::min<std::uint64_t>(limit, 600'000))};
    return options;
}

void Session::out(std::string_view text, bool flush)
{
    const bool whole = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
    if (whole && (!flush || std::fflush(stdout) == 0)) { return; }
    if (errno == EPIPE) { ::_exit(incomplete_ ? exit_incomplete : exit_ok); }
    write_error("error: write to stdout failed\n");
    ::_exit(exit_generic);
}

Session::~Session()
{
    reader_.reset();
    if (reader_fd_ >= 0) { ::close(reader_fd_); }
}

void Session::watch_reader()
{
    // libuv would make stdout non-blocking, for everybody who shares it: it watches an epoll set with stdout in it instead.
    reader_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
    epoll_event errors_only{};
    if (reader_fd_ < 0 || ::epoll_ctl(reader_fd_, EPOLL_CTL_ADD, STDOUT_FILENO, &errors_only) != 0) { return; } // a file has no reader
    reader_ = make_uv<uv_poll_t>([&](uv_poll_t* h) { return uv_poll_init(loop_.raw(), h, reader_fd_); });
    if (!reader_) { return; }
    reader_->data = this;
    uv_poll_start(reader_.get(), UV_READABLE,
                  [](uv_poll_t* h, int, int) { ::_exit(static_cast<Session*>(h->data)->incomplete_ ? exit_incomplete : exit_ok); });
}

void Session::note(std::string_view line) const
{
    if (!options_.quiet) { write_error(printable(line) + "\n"); }
}

void Session::warn(std::string_view line) const { write_error("warning: " + printable(line) + "\n"); }

int Session::fail(const Error& error, int code)
{
    if (options_.json)
    {
        out(error_document(error), true);
        return code;
    }
    write_error("error: " + printable(error.message) + "\n");
    if (!error.hint.empty()) { write_error("hint: " + printable(error.hint) + "\n"); }
    return code;
}

int Session::fail(const Error& error) { return fail(error, exit_code(error.code)); }

} // namespace dstack::cli
