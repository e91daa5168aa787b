#pragma once
#include "bus/schema/fields.hpp"
#include <string_view>

namespace dstack::schema
{

enum class Severity { debug, info, warning, error };
std::string_view to_string(Severity severity);

/// What an operator may do; each role may do what the ones before it may.
enum class Role { none, viewer, operator_, admin };
std::string_view to_string(Role role);

/// The fixed facts of an event type. Facts are named in the past tense: "lease.granted".
struct EventType
{
    std::string_view name;
    std::string_view emitter; ///< the only service that may publish it
    Severity severity;
    int since; ///< schema version
    std::string_view doc;
};

/// The fixed facts of a command. Requests are named in the imperative: "lease.reserve".
struct CommandType
{
    std::string_view name;
    std::string_view target;   ///< the service that serves it ("bus": the broker itself)
    Role role;                 ///< least role of an operator who may send it; none: no operator may
    std::string_view services; ///< services that may send it, separated by spaces
    int since;
    std::string_view doc;
};

template <class T>
concept EventStruct = Described<T> && requires(const T& event) {
    { T::type } -> std::convertible_to<EventType>;
    { event.subject() } -> std::convertible_to<std::string_view>;
};

template <class T>
concept CommandStruct = Described<T> && Described<typename T::Reply> && requires {
    { T::type } -> std::convertible_to<CommandType>;
};

/// A command's answer that carries nothing.
struct Empty
{
    void describe(Fields&) {}
};

} // namespace dstack::schema
