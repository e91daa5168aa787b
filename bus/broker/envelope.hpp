#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::bus
{

/// What a publisher says of an event; borrowed.
struct EventHead
{
    std::string_view id;
    std::string_view type;
    std::string_view service; ///< who published it, attested
    std::string_view subject;
    std::string_view severity;
    std::uint64_t time_ms = 0;
    std::string_view traceparent; ///< may be empty
    std::string_view data;        ///< a well-formed JSON object
};

/// The CloudEvent as one line of JSON, up to its `sequence`, which only the journal knows.
std::string begin_envelope(const EventHead& event);
void end_envelope(std::string& envelope, std::uint64_t epoch, std::uint64_t sequence);

/// One well-formed JSON object in UTF-8, and nothing behind it.
bool is_json_object(std::string_view text);

} // namespace dstack::bus
