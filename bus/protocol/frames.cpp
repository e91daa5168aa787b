#include "bus/protocol/frames.hpp"
#include <charconv>
#include <memory>
#include <nlohmann/json.hpp>

namespace dstack::bus::wire
{

zmq::message_t frame_of(std::string text)
{
    auto owned = std::make_unique<std::string>(std::move(text));
    std::string* raw = owned.get();
    zmq::message_t out{raw->data(), raw->size(), [](void*, void* hint) { delete static_cast<std::string*>(hint); }, raw};
    static_cast<void>(owned.release());
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
