#pragma once
#include "shared/base/result.hpp"
#include <array>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>
#include <zmq.hpp>

// The words on the wire; bus/README.md is their specification.
namespace dstack::bus::wire
{

inline constexpr std::string_view version = "1";
inline constexpr std::string_view zap_domain = "dstack";

// client -> broker
inline constexpr std::string_view hello = "hello";
inline constexpr std::string_view ping = "ping";
inline constexpr std::string_view bye = "bye";
inline constexpr std::string_view publish = "publish";
inline constexpr std::string_view call = "call";
inline constexpr std::string_view read = "read";
inline constexpr std::string_view reply = "reply";
// broker -> client
inline constexpr std::string_view welcome = "welcome";
inline constexpr std::string_view refused = "refused";
inline constexpr std::string_view pong = "pong";
inline constexpr std::string_view published = "published";
inline constexpr std::string_view unpublished = "unpublished";
inline constexpr std::string_view result = "result";
inline constexpr std::string_view request = "request";
inline constexpr std::string_view events = "events";
inline constexpr std::string_view reading_failed = "reading_failed";
// live socket
inline constexpr std::string_view event_topic = "e.";
inline constexpr std::string_view head_topic = "h";

inline constexpr std::string_view ok = "ok";

inline constexpr std::size_t max_message_bytes = 4 * 1024 * 1024; ///< one frame
inline constexpr std::size_t max_event_bytes = 256 * 1024;        ///< the data of one event
inline constexpr std::size_t max_body_bytes = 1024 * 1024;        ///< the body of one command or result
inline constexpr std::size_t max_word_bytes = 128;                ///< a correlation, id or name
inline constexpr std::size_t max_frames = 257;                    ///< of one message: 256 requests, and the route
inline constexpr std::size_t max_read_events = 1000;              ///< in one answer to `read`
inline constexpr std::size_t max_page_bytes = 2 * 1024 * 1024;    ///< in one answer to `read`; one event more may be in it

using Frames = std::vector<zmq::message_t>;

inline std::string_view text(const zmq::message_t& frame) { return {static_cast<const char*>(frame.data()), frame.size()}; }
inline zmq::message_t frame(std::string_view bytes) { return zmq::message_t{bytes.data(), bytes.size()}; }

inline std::size_t size_of(const Frames& frames)
{
    std::size_t bytes = 0;
    for (const zmq::message_t& part : frames) { bytes += part.size(); }
    return bytes;
}

/// What one frame says: version, verb and the verb's fields, with newlines between them; the last field is all the rest.
/// Views into the frame: a message_t that is moved may take its bytes along.
class Line
{
  public:
    /// Of an unknown verb only the verb.
    explicit Line(std::string_view frame);
    std::string_view version() const { return version_; }
    std::string_view verb() const { return at(0); }
    /// 0 is the verb. Empty where there is none.
    std::string_view at(std::size_t index) const { return index < count_ ? fields_[index] : std::string_view{}; }
    /// The verb is known, and all of its fields are there.
    bool complete() const { return complete_; }

  private:
    static constexpr std::size_t max_fields = 9;
    std::string_view version_;
    std::array<std::string_view, max_fields> fields_{};
    std::size_t count_ = 0;
    bool complete_ = false;
};

/// The text up to the next newline, which is taken away with it.
std::string_view next_field(std::string_view& rest);

/// A frame of these fields. None but the last may have a newline in it.
zmq::message_t line(std::initializer_list<std::string_view> fields);
std::string joined(std::initializer_list<std::string_view> fields);
/// Can this be a field that is not the last?
inline bool is_field(std::string_view text) { return text.find('\n') == std::string_view::npos; }

/// Decimal without sign or spaces; anything else is nothing.
std::optional<std::uint64_t> number(std::string_view text);

/// Receives one whole message without waiting. False: there was none. A message of too many frames is read and dropped
/// (`out` is empty then).
bool receive(zmq::socket_t& socket, Frames& out);
/// Sends without waiting. False: the peer is gone or its queue is full; nothing was sent.
bool send(zmq::socket_t& socket, Frames& frames);

/// An error as the body of a failed result: {"message","hint","details"}.
std::string error_body(const Error& error);
/// The inverse; `code` is the status word that came with it.
Error error_from(std::string_view code, std::string_view body);

} // namespace dstack::bus::wire
