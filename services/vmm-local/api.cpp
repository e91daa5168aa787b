#include "services/vmm-local/api.hpp"
#include "services/vmm-local/log_tail.hpp"
#include "services/vmm-local/rpc.hpp"
#include "shared/log/log.hpp"
#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>

namespace dstack::vmm
{

namespace
{
constexpr std::size_t max_rpc_body = 10 * 1024 * 1024;
constexpr std::string_view nothing = "null"; // google.protobuf.Empty in JSON mode

Result<std::string> empty_answer(Result<Done> done, std::string_view context)
{
    if (done) { return std::string{nothing}; }
    if (context.empty()) { return std::move(done).error(); }
    return std::move(done).error().within(context);
}

http::Response with_version(http::Response response)
{
    response.headers.add("X-App-Version", "v" DSTACK_VERSION " (dstack-vmm-local)");
    response.headers.add("X-Accel-Buffering", "no");
    return response;
}
} // namespace

http::BodyPlan plan_api_body(const http::Request& head)
{
    return {head.path().starts_with("/prpc/") ? max_rpc_body : 4096, false};
}

Task<http::Response> Api::handle(http::Request request)
{
    const std::string path{request.path()};
    if (path.starts_with("/prpc/"))
    {
        auto response = co_await prpc(std::move(request));
        co_return with_version(std::move(response));
    }
    if (path == "/logs" && (request.method == "GET" || request.method == "HEAD"))
    {
        auto response = co_await logs(std::move(request));
        co_return with_version(std::move(response));
    }
    co_return with_version(http::text_response(404, "not found\n"));
}

Task<http::Response> Api::prpc(http::Request request)
{
    if (request.method != "POST" && request.method != "GET" && request.method != "HEAD")
    {
        co_return http::text_response(405, "POST or GET\n");
    }
    const std::string method = method_of(request.path());
    if (method.empty()) { co_return http::text_response(404, "not found\n"); }
    if (!wants_json(request.method, request.query(), request.headers.get("content-type")))
    {
        co_return http::json_response(400, error_body("binary protobuf mode is not served by dstack-vmm-local: add ?json to the URL "
                                                      "or send Content-Type: application/json"));
    }
    std::string body = request.method == "POST" ? std::move(request.body) : query_to_json(request.query());
    std::string trace{request.headers.get("traceparent")};
    auto answer = co_await call(method, std::move(body), std::move(trace));
    if (!answer)
    {
        log::warn("request refused", {{"method", method}, {"error", answer.error().message}});
        co_return http::json_response(400, error_body(answer.error().message));
    }
    co_return http::json_response(200, std::move(*answer));
}

Task<Result<std::string>> Api::call(std::string method, std::string body, std::string trace)
{
    if (method == "Version") { co_return version_answer(); }
    if (method == "GetMeta") { co_return meta_answer(vmm_.config()); }
    if (method == "ListGpus") { co_return gpus_answer(); }
    if (method == "ListImages")
    {
        auto images = co_await vmm_.images();
        if (!images) { co_return std::move(images).error(); }
        co_return images_answer(*images);
    }
    if (method == "ReloadVms")
    {
        auto reloaded = co_await vmm_.reload();
        if (!reloaded) { co_return std::move(reloaded).error(); }
        co_return reload_answer(reloaded->loaded, reloaded->updated, reloaded->removed);
    }
    if (method == "Status")
    {
        auto request = decode_status(body);
        if (!request) { co_return std::move(request).error(); }
        auto listing = co_await vmm_.status(std::move(*request));
        co_return status_answer(listing.views, listing.total, vmm_.config().port_mapping, now_ms());
    }
    if (method == "CreateVm" || method == "GetComposeHash")
    {
        auto request = decode_vm_configuration(body);
        if (!request) { co_return std::move(request).error(); }
        if (method == "GetComposeHash")
        {
            if (!valid_name(request->name)) { co_return Error{Errc::invalid_argument, "Invalid name: " + request->name, {}, {}}; }
            auto parses = check_app_compose(request->compose_file);
            if (!parses) { co_return std::move(parses).error(); }
            co_return hash_answer(compose_hash(request->compose_file));
        }
        if (trace.size() == 55) { request->trace = std::move(trace); }
        auto id = co_await vmm_.create(std::move(*request));
        if (!id) { co_return std::move(id).error(); }
        co_return id_answer(*id);
    }
    const bool by_id = method == "StartVm" || method == "StopVm" || method == "ShutdownVm" || method == "RemoveVm" || method == "GetInfo";
    if (!by_id) { co_return Error{Errc::not_found, "Service not found: " + method, {}, {}}; }
    auto request = decode_id(body);
    if (!request) { co_return std::move(request).error(); }
    if (method == "GetInfo")
    {
        auto view = co_await vmm_.info(request->id);
        co_return info_answer(view ? &*view : nullptr, now_ms());
    }
    if (!valid_vm_id(request->id)) { co_return Error{Errc::invalid_argument, "invalid VM id", {}, {}}; }
    vmm_.note_trace(request->id, trace);
    if (method == "StartVm")
    {
        auto done = co_await vmm_.start(request->id);
        co_return empty_answer(std::move(done), "Failed to start VM");
    }
    if (method == "StopVm")
    {
        auto done = co_await vmm_.stop(request->id);
        co_return empty_answer(std::move(done), "Failed to stop VM");
    }
    if (method == "ShutdownVm")
    {
        auto done = co_await vmm_.shutdown(request->id);
        co_return empty_answer(std::move(done), "");
    }
    auto done = co_await vmm_.remove(request->id);
    co_return empty_answer(std::move(done), "Failed to remove VM");
}

// --- /logs -----------------------------------------------------------------------------------------------------------

namespace
{
constexpr std::size_t piece_size = 8192;
constexpr milliseconds look_again{100};
constexpr milliseconds heartbeat{60'000};

struct LogFile
{
    process::Fd fd;
    std::uint64_t at = 0;
};

/// A missing file is an empty one.
LogFile open_log(const std::string& path, std::size_t lines)
{
    LogFile out;
    out.fd = process::Fd{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW)};
    struct stat info{};
    if (!out.fd || fstat(out.fd.get(), &info) != 0) { return out; }
    out.at = tail_offset(out.fd.get(), static_cast<std::uint64_t>(info.st_size), lines);
    return out;
}

/// The next bytes; empty at the end. A file that was truncated (rotated in place) is read from its beginning.
std::string read_piece(LogFile& file)
{
    struct stat info{};
    if (!file.fd || fstat(file.fd.get(), &info) != 0) { return {}; }
    if (static_cast<std::uint64_t>(info.st_size) < file.at) { file.at = 0; }
    std::string out(piece_size, '\0');
    const ssize_t n = pread(file.fd.get(), out.data(), out.size(), static_cast<off_t>(file.at));
    out.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    file.at += out.size();
    return out;
}

Task<Result<Done>> stream_log(Loop& loop, std::string path, LogRequest request, http::BodyWriter* out)
{
    auto open_it = [path, lines = request.lines] { return std::make_shared<LogFile>(open_log(path, lines)); };
    auto file = co_await offload(loop, open_it);
    LogText text{request.ansi};
    auto last_word = loop.now();
    for (;;)
    {
        auto read = [file] { return read_piece(*file); };
        auto piece = co_await offload(loop, read);
        std::string chunk = piece.empty() ? std::string{} : text.feed(piece);
        if (piece.empty() && !request.follow) { chunk = text.rest(); }
        if (request.follow && piece.empty() && loop.now() - last_word >= heartbeat) { chunk = "[vmm heartbeat]\n"; }
        if (!chunk.empty())
        {
            last_word = loop.now();
            auto written = co_await out->write(std::move(chunk));
            if (!written) { co_return written; }
        }
        if (piece.empty())
        {
            if (!request.follow) { co_return Done{}; }
            co_await sleep_for(loop, look_again);
            if (!file->fd) { *file = open_log(path, request.lines); } // it may come into being
        }
    }
}
} // namespace

Task<http::Response> Api::logs(http::Request request)
{
    auto wanted = parse_log_query(request.query());
    if (!wanted)
    {
        const bool parameter = wanted.error().code == Errc::invalid_argument;
        co_return http::text_response(parameter ? 422 : 400, wanted.error().message);
    }
    const auto dir = vmm_.dir_of(wanted->id);
    if (!dir) { co_return http::text_response(404, "VM not found"); }
    http::Response response;
    response.headers.add("Content-Type", "text/plain; charset=utf-8");
    const std::string path = *dir + "/" + wanted->channel + ".log";
    Loop& loop = vmm_.loop();
    response.stream = [&loop, path, log_request = *wanted](http::BodyWriter& out) { return stream_log(loop, path, log_request, &out); };
    co_return response;
}

} // namespace dstack::vmm
