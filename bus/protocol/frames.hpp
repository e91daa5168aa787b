#pragma once
#include "shared/base/result.hpp"
#include <cstddef>
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
inline constexpr std::size_t max_frames = 1200;                   ///< of one message
inline constexpr std::size_t max_read_events = 1000;              ///< in one answer to `read`
inline constexpr std::size_t max_read_bytes = 2 * 1024 * 1024;    ///< in one answer to `read`

using Frames = std::vector<zmq::message_t>;

inline std::string_view text(const zmq::message_t& frame) { return {static_cast<const char*>(frame.data()), frame.size()}; }
inline zmq::message_t frame(std::string_view bytes) { return zmq::message_t{bytes.data(), bytes.size()}; }

inline std::size_t size_of(const Frames& frames)
{
    std::size_t bytes = 0;
    for (const zmq::message_t& part : frames) { bytes += part.size(); }
    return bytes;
}
/// Without a copy: the frame owns the text.
zmq::message_t frame_of(std::string text);

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
