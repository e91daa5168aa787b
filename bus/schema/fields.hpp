#pragma once
#include "shared/base/result.hpp"
#include <concepts>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::schema
{

/// One JSON value that the schema carries without looking inside. Empty text means null.
struct RawJson
{
    std::string text;
};

class Fields;

/// A struct whose field list is `void describe(Fields&)`: the one source of its encoder, decoder and reference page.
template <class T>
concept Described = requires(T value, Fields& fields) { value.describe(fields); };

/// The visitor that a field list talks to. `f("name", member, "what it means, with its unit")` is a field that must be
/// there; `f.optional(...)` may be missing and then keeps its initial value. Unknown fields are ignored on reading.
class Fields
{
  public:
    virtual ~Fields() = default;

    template <class T>
    void operator()(std::string_view name, T& member, std::string_view doc)
    {
        visit(name, member, doc, true);
    }
    template <class T>
    void optional(std::string_view name, T& member, std::string_view doc)
    {
        visit(name, member, doc, false);
    }

  protected:
    using Name = std::string_view;
    virtual void text(Name name, std::string& member, Name doc, bool required) = 0;
    virtual void flag(Name name, bool& member, Name doc, bool required) = 0;
    /// An unsigned number of at most `max`.
    virtual void number(Name name, std::uint64_t& member, std::uint64_t max, Name doc, bool required) = 0;
    virtual void integer(Name name, std::int64_t& member, Name doc, bool required) = 0;
    virtual void texts(Name name, std::vector<std::string>& member, Name doc, bool required) = 0;
    virtual void raw(Name name, RawJson& member, Name doc, bool required) = 0;

    /// A list of objects, seen through its size and one describe call per element.
    struct List
    {
        std::size_t size;
        std::function<void(std::size_t)> resize;
        std::function<void(std::size_t, Fields&)> describe;
    };
    virtual void list(Name name, const List& list, Name doc, bool required) = 0;

  private:
    void visit(Name name, std::string& member, Name doc, bool required) { text(name, member, doc, required); }
    void visit(Name name, bool& member, Name doc, bool required) { flag(name, member, doc, required); }
    void visit(Name name, std::int64_t& member, Name doc, bool required) { integer(name, member, doc, required); }
    void visit(Name name, RawJson& member, Name doc, bool required) { raw(name, member, doc, required); }
    void visit(Name name, std::vector<std::string>& member, Name doc, bool required)
    {
        texts(name, member, doc, required);
    }
    template <std::unsigned_integral T>
    void visit(Name name, T& member, Name doc, bool required)
    {
        std::uint64_t wide = member;
        number(name, wide, static_cast<T>(-1), doc, required);
        member = static_cast<T>(wide);
    }
    template <Described T>
    void visit(Name name, std::vector<T>& member, Name doc, bool required)
    {
        T blank{}; // what a reference page shows of an empty list
        list(name,
             List{member.size(), [&member](std::size_t size) { member.resize(size); },
                  [&member, &blank](std::size_t index, Fields& fields)
                  { (index < member.size() ? member[index] : blank).describe(fields); }},
             doc, required);
    }
};

namespace detail
{
std::string encode(const std::function<void(Fields&)>& describe);
Result<Done> decode(std::string_view what, std::string_view json, const std::function<void(Fields&)>& describe);
} // namespace detail

/// Compact JSON object, fields in the order of the list. Text that is no UTF-8 is replaced, never refused.
template <Described T>
std::string to_json(T value)
{
    return detail::encode([&value](Fields& fields) { value.describe(fields); });
}

/// Strict: an object, every required field there with the right type and range. `what` names it in the error.
template <Described T>
Result<T> from_json(std::string_view what, std::string_view json)
{
    T value{};
    auto decoded = detail::decode(what, json, [&value](Fields& fields) { value.describe(fields); });
    if (!decoded) { return std::move(decoded).error(); }
    return value;
}

} // namespace dstack::schema
