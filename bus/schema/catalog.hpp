#pragma once
#include "bus/schema/types.hpp"
#include <functional>
#include <vector>

namespace dstack::schema
{

struct EventEntry
{
    EventType type;
    std::function<void(Fields&)> describe; ///< visits the fields of a blank event
};
struct CommandEntry
{
    CommandType type;
    std::function<void(Fields&)> describe_request;
    std::function<void(Fields&)> describe_reply;
};

/// The whole vocabulary, in the order of the reference page. The broker's access table is made from it.
const std::vector<EventEntry>& events();
const std::vector<CommandEntry>& commands();

/// nullptr when there is no such type.
const EventType* find_event(std::string_view name);
const CommandType* find_command(std::string_view name);

/// True when `service` is named in the command's list of services.
bool service_may_send(const CommandType& command, std::string_view service);

} // namespace dstack::schema
