#include "services/guest-agent/notify_body.hpp"
#include <nlohmann/json.hpp>

namespace dstack::guest
{

namespace
{
constexpr std::size_t max_body = 4096;

std::string body(std::string_view event, std::string_view payload)
{
    const nlohmann::ordered_json out{{"event", event}, {"payload", payload}};
    return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

} // namespace

std::string notify_body(std::string_view event, std::string_view payload)
{
    std::string out = body(event, payload);
    std::size_t keep = payload.size();
    while (out.size() > max_body && keep > 0)
    {
        keep = std::min(keep - 1, keep * (max_body - 64) / out.size()); // escapes make the size a guess
        while (keep > 0 && (static_cast<unsigned char>(payload[keep]) & 0xc0U) == 0x80U) { --keep; }
        out = body(event, std::string{payload.substr(0, keep)} + "...");
    }
    return out;
}

std::string rpc_error(std::string_view text)
{
    const nlohmann::json document = nlohmann::json::parse(text, nullptr, false);
    if (document.is_object())
    {
        const auto error = document.find("error");
        if (error != document.end() && error->is_string()) { return error->get<std::string>(); }
    }
    return text.empty() ? "no reason given" : std::string{text.substr(0, 512)};
}

std::string one_line(const Error& error)
{
    return error.hint.empty() ? error.message : error.message + " (" + error.hint + ")";
}

} // namespace dstack::guest
