#include "bus/protocol/frames.hpp"
#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

namespace dstack::bus::wire
{

namespace
{
/// How many fields follow a verb; -1: there is no such verb.
int fields_of(std::string_view verb)
{
    struct Verb
    {
        std::string_view name;
        int fields;
    };
    static constexpr std::array<Verb, 16> verbs{{{publish, 7}, {published, 1}, {call, 6}, {request, 7}, {reply, 3}, {result, 3}, {ping, 0}, {pong, 2}, {read, 4},
                                                 {events, 8}, {unpublished, 3}, {reading_failed, 3}, {hello, 2}, {welcome, 4}, {refused, 2}, {bye, 0}}};
    for (const Verb& known : verbs)
    {
        if (known.name == verb) { return known.fields; }
    }
    return -1;
}
} // namespace

std::string_view next_field(std::string_view& rest)
{
    const std::size_t end = rest.find('\n');
    const std::string_view field = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
    return field;
}

Line::Line(std::string_view frame)
{
    version_ = next_field(frame);
    const std::string_view verb = frame.substr(0, frame.find('\n'));
    const int wanted = fields_of(verb);
    fields_[count_++] = verb;
    for (int i = 0; i < wanted; ++i)
    {
        const std::size_t end = frame.find('\n');
        if (end == std::string_view::npos) { return; }
        frame.remove_prefix(end + 1);
        fields_[count_++] = i + 1 == wanted ? frame : frame.substr(0, frame.find('\n'));
    }
    complete_ = wanted > 0 || (wanted == 0 && frame == verb);
}

std::string joined(std::initializer_list<std::string_view> fields)
{
    std::size_t size = 0;
    for (const std::string_view field : fields) { size += field.size() + 1; }
    std::string out;
    out.reserve(size);
    for (const std::string_view field : fields) { out.append(field).push_back('\n'); }
    out.pop_back();
    return out;
}

zmq::message_t line(std::initializer_list<std::string_view> fields)
{
    std::size_t size = fields.size() - 1;
    for (const std::string_view field : fields) { size += field.size(); }
    zmq::message_t out{size};
    char* at = static_cast<char*>(out.data());
    for (std::size_t i = 0; i < fields.size(); ++i)
    {
        if (i > 0) { *at++ = '\n'; }
        const std::string_view field = fields.begin()[i];
        at = std::copy(field.begin(), field.end(), at);
    }
    return out;
}

std::optional<std::uint64_t> number(std::string_view text)
{
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || text.empty()) { return std::nullopt; }
    return value;
}

bool receive(zmq::socket_t& socket, Frames& out)
{
    out.clear();
    bool too_many = false;
    for (bool more = true; more;)
    {
        zmq::message_t part;
        if (!socket.recv(part, zmq::recv_flags::dontwait)) { return false; }
        more = part.more();
        too_many = too_many || out.size() >= max_frames;
        if (!too_many) { out.push_back(std::move(part)); }
    }
    if (too_many) { out.clear(); }
    return true;
}

bool send(zmq::socket_t& socket, Frames& frames)
{
    for (std::size_t i = 0; i < frames.size(); ++i)
    {
        const bool last = i + 1 == frames.size();
        const auto flags = zmq::send_flags::dontwait | (last ? zmq::send_flags::none : zmq::send_flags::sndmore);
        // The C call: cppzmq throws for EHOSTUNREACH, which here is an answer.
        const int sent = zmq_msg_send(frames[i].handle(), socket.handle(), static_cast<int>(flags));
        if (sent < 0) { return false; } // only ever the first frame: the rest of a message always fits
    }
    return true;
}

std::string error_body(const Error& error)
{
    nlohmann::ordered_json body{{"message", error.message}, {"hint", error.hint}};
    auto details = nlohmann::ordered_json::parse(error.details, nullptr, false);
    body["details"] = details.is_discarded() ? nlohmann::ordered_json{} : std::move(details);
    return body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Error error_from(std::string_view code, std::string_view body)
{
    Error error{errc_from_string(code), {}, {}, {}};
    const auto json = nlohmann::json::parse(body, nullptr, false);
    if (!json.is_object())
    {
        error.message = "the answer carries an error that cannot be read";
        return error;
    }
    const auto text_of = [&json](const char* key) -> std::string
    {
        const auto found = json.find(key);
        if (found == json.end() || !found->is_string()) { return {}; }
        return *found->get_ptr<const std::string*>();
    };
    error.message = text_of("message");
    error.hint = text_of("hint");
    const auto details = json.find("details");
    if (details != json.end() && !details->is_null()) { error.details = details->dump(); }
    return error;
}

} // namespace dstack::bus::wire
