#include "bus/broker/envelope.hpp"
#include "shared/base/time.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>
#include <simdjson.h>

namespace dstack::bus
{

namespace
{
void append_json_string(std::string& out, std::string_view text)
{
    const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c < 0x7f && c != '"' && c != '\\'; });
    if (plain)
    {
        ((out += '"') += text) += '"';
        return;
    }
    const nlohmann::json value = std::string{text};
    out += value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void append_time(std::string& out, std::uint64_t time_ms)
{
    // Events come in bursts: the second is mostly the one of the event before.
    thread_local std::uint64_t known_second = ~std::uint64_t{0};
    thread_local std::string text;
    if (time_ms / 1000 != known_second)
    {
        known_second = time_ms / 1000;
        text = rfc3339(known_second * 1000);
    }
    const auto ms = static_cast<unsigned>(time_ms % 1000);
    out += text;
    char* digit = &out[out.size() - 4]; // of "000Z"
    digit[0] = static_cast<char>('0' + ms / 100);
    digit[1] = static_cast<char>('0' + ms / 10 % 10);
    digit[2] = static_cast<char>('0' + ms % 10);
}
} // namespace

std::string begin_envelope(const EventHead& event)
{
    std::string out;
    out.reserve(320 + event.subject.size() + event.data.size());
    out += R"({"specversion":"1.0","id":)";
    append_json_string(out, event.id);
    out += R"(,"source":"/dstack/)";
    ((out += event.service) += R"(","type":)");
    append_json_string(out, event.type);
    out += R"(,"subject":)";
    append_json_string(out, event.subject);
    out += R"(,"time":")";
    append_time(out, event.time_ms);
    out += R"(","datacontenttype":"application/json","severity":)";
    append_json_string(out, event.severity);
    if (!event.traceparent.empty())
    {
        out += R"(,"traceparent":)";
        append_json_string(out, event.traceparent);
    }
    (out += R"(,"data":)") += event.data;
    // An event is one line. In JSON a newline only ever stands between two tokens; nothing before the data has one.
    if (event.data.find('\n') != std::string_view::npos) { std::replace(out.begin(), out.end(), '\n', ' '); }
    return out;
}

void end_envelope(std::string& envelope, std::uint64_t epoch, std::uint64_t sequence)
{
    (((envelope += R"(,"sequence":")") += std::to_string(epoch)) += ':') += std::to_string(sequence);
    envelope += "\"}";
}

bool is_json_object(std::string_view text)
{
    thread_local simdjson::dom::parser parser;
    simdjson::dom::element root;
    if (parser.parse(text.data(), text.size()).get(root) != simdjson::SUCCESS) { return false; }
    return root.is_object();
}

} // namespace dstack::bus
