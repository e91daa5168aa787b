// Hostile bytes to the request and response parsers: whatever the cuts between reads, the outcome is the same, and no
// limit is passed.
#include "shared/http/parser.hpp"
#include <cstdint>
#include <cstdlib>

using namespace dstack::http;

namespace
{

constexpr std::size_t max_body = 512;

Limits limits()
{
    Limits out;
    out.max_header_bytes = 1024;
    out.max_headers = 16;
    out.max_body_bytes = max_body;
    return out;
}

void check(bool holds)
{
    if (!holds) { std::abort(); }
}

/// What a server would see, as text; `piece` bytes are given at a time.
std::string requests(std::string_view bytes, std::size_t piece)
{
    const Limits all = limits();
    RequestParser parser{all, nullptr};
    std::string seen;
    while (!bytes.empty() && !parser.failed())
    {
        std::string_view now = bytes.substr(0, piece);
        const std::size_t given = now.size();
        while (!now.empty() && !parser.failed())
        {
            const std::size_t used = parser.feed(now);
            check(used <= now.size());
            now.remove_prefix(used);
            if (parser.failed()) { break; }
            if (!parser.complete())
            {
                check(now.empty());
                continue;
            }
            const Request& request = parser.request();
            check(request.body.size() <= max_body && request.headers.size() <= all.max_headers);
            seen += request.method + " " + request.target + "\n";
            for (const Header& header : request.headers)
            {
                check(header.name.find_first_of(" \r\n:") == std::string::npos);
                check(header.value.find_first_of(std::string_view{"\r\n\0", 3}) == std::string::npos);
                seen += header.name + ":" + header.value + "\n";
            }
            seen += request.body + "\n" + (parser.keep_alive() ? "keep\n" : "close\n");
            if (!parser.keep_alive()) { return seen; }
            parser.next();
        }
        bytes.remove_prefix(given);
    }
    return seen;
}

std::string response(std::string_view bytes, std::size_t piece)
{
    ResponseParser parser{1024, max_body, false};
    while (!bytes.empty())
    {
        parser.feed(bytes.substr(0, piece));
        bytes.remove_prefix(std::min(piece, bytes.size()));
    }
    parser.finish();
    check(parser.body().size() <= max_body);
    if (!parser.complete()) { return "failed"; }
    return std::to_string(parser.status()) + parser.body();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    if (size > 4096) { return 0; }
    const std::string_view bytes{reinterpret_cast<const char*>(data), size};
    const std::string whole = requests(bytes, bytes.size() + 1);
    check(whole == requests(bytes, 1));
    check(whole == requests(bytes, 7));
    const std::string answer = response(bytes, bytes.size() + 1);
    check(answer == response(bytes, 1));
    Request request;
    request.target = bytes;
    static_cast<void>(request.path());
    static_cast<void>(request.query_value("lines"));
    check(percent_decode(percent_encode(bytes)) == bytes);
    return 0;
}
