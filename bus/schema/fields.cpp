#include "bus/schema/fields.hpp"
#include "bus/schema/types.hpp"
#include <nlohmann/json.hpp>

namespace dstack::schema
{

namespace
{

using Json = nlohmann::ordered_json;

class Encoder final : public Fields
{
  public:
    Json object = Json::object();

  protected:
    void text(Name name, std::string& member, Name, bool) override { object[std::string{name}] = member; }
    void flag(Name name, bool& member, Name, bool) override { object[std::string{name}] = member; }
    void number(Name name, std::uint64_t& member, std::uint64_t, Name, bool) override
    {
        object[std::string{name}] = member;
    }
    void integer(Name name, std::int64_t& member, Name, bool) override { object[std::string{name}] = member; }
    void texts(Name name, std::vector<std::string>& member, Name, bool) override { object[std::string{name}] = member; }
    void raw(Name name, RawJson& member, Name, bool) override
    {
        Json value = Json::parse(member.text, nullptr, false);
        object[std::string{name}] = value.is_discarded() ? Json{} : std::move(value);
    }
    void list(Name name, const List& list, Name, bool) override
    {
        Json array = Json::array();
        for (std::size_t i = 0; i < list.size; ++i)
        {
            Encoder element;
            list.describe(i, element);
            array.push_back(std::move(element.object));
        }
        object[std::string{name}] = std::move(array);
    }
};

class Decoder final : public Fields
{
  public:
    explicit Decoder(const Json& object) : object_(object) {}
    std::string complaint;

  protected:
    void text(Name name, std::string& member, Name, bool required) override
    {
        if (const Json* j = find(name, required))
        {
            if (const auto* s = j->get_ptr<const Json::string_t*>()) { member = *s; }
            else { complain(name, "must be a string"); }
        }
    }
    void flag(Name name, bool& member, Name, bool required) override
    {
        if (const Json* j = find(name, required))
        {
            if (const auto* b = j->get_ptr<const Json::boolean_t*>()) { member = *b; }
            else { complain(name, "must be true or false"); }
        }
    }
    void number(Name name, std::uint64_t& member, std::uint64_t max, Name, bool required) override
    {
        if (const Json* j = find(name, required))
        {
            const auto* n = j->is_number_unsigned() ? j->get_ptr<const Json::number_unsigned_t*>() : nullptr;
            if (n != nullptr && *n <= max) { member = *n; }
            else { complain(name, "must be a whole number from 0 to " + std::to_string(max)); }
        }
    }
    void integer(Name name, std::int64_t& member, Name, bool required) override
    {
        if (const Json* j = find(name, required))
        {
            const auto* wide = j->is_number_unsigned() ? j->get_ptr<const Json::number_unsigned_t*>() : nullptr;
            const auto* n = j->get_ptr<const Json::number_integer_t*>();
            const bool fits = n != nullptr && (wide == nullptr || *wide <= static_cast<std::uint64_t>(INT64_MAX));
            if (fits) { member = *n; }
            else { complain(name, "must be a whole number of 64 bits"); }
        }
    }
    void texts(Name name, std::vector<std::string>& member, Name, bool required) override
    {
        const Json* j = find(name, required);
        if (j == nullptr) { return; }
        if (!j->is_array())
        {
            complain(name, "must be a list of strings");
            return;
        }
        member.clear();
        for (const Json& element : *j)
        {
            const auto* s = element.get_ptr<const Json::string_t*>();
            if (s == nullptr)
            {
                complain(name, "must be a list of strings");
                return;
            }
            member.push_back(*s);
        }
    }
    void raw(Name name, RawJson& member, Name, bool required) override
    {
        if (const Json* j = find(name, required)) { member.text = j->dump(-1, ' ', false, Json::error_handler_t::replace); }
    }
    void list(Name name, const List& list, Name, bool required) override
    {
        const Json* j = find(name, required);
        if (j == nullptr) { return; }
        if (!j->is_array())
        {
            complain(name, "must be a list of objects");
            return;
        }
        list.resize(j->size());
        for (std::size_t i = 0; i < j->size() && complaint.empty(); ++i)
        {
            const Json& object = (*j)[i];
            if (!object.is_object())
            {
                complain(name, "must be a list of objects");
                return;
            }
            Decoder element{object};
            list.describe(i, element);
            if (!element.complaint.empty())
            {
                complaint = std::string{name} + "[" + std::to_string(i) + "]." + element.complaint;
            }
        }
    }

  private:
    const Json* find(Name name, bool required)
    {
        const auto found = object_.find(name);
        if (found == object_.end())
        {
            if (required) { complain(name, "is missing"); }
            return nullptr;
        }
        return &*found;
    }
    void complain(Name name, std::string_view why)
    {
        if (complaint.empty()) { complaint = std::string{name} + " " + std::string{why}; }
    }
    const Json& object_;
};

} // namespace

namespace detail
{

std::string encode(const std::function<void(Fields&)>& describe)
{
    Encoder encoder;
    describe(encoder);
    return encoder.object.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<Done> decode(std::string_view what, std::string_view json, const std::function<void(Fields&)>& describe)
{
    const Json object = Json::parse(json, nullptr, false);
    if (!object.is_object()) { return Error{Errc::invalid_argument, std::string{what} + ": not a JSON object", {}, {}}; }
    Decoder decoder{object};
    describe(decoder);
    if (!decoder.complaint.empty())
    {
        return Error{Errc::invalid_argument, std::string{what} + ": " + decoder.complaint, {}, {}};
    }
    return Done{};
}

} // namespace detail

std::string_view to_string(Severity severity)
{
    switch (severity)
    {
    case Severity::debug: return "debug";
    case Severity::info: return "info";
    case Severity::warning: return "warning";
    case Severity::error: return "error";
    }
    return "error";
}

std::string_view to_string(Role role)
{
    switch (role)
    {
    case Role::none: return "none";
    case Role::viewer: return "viewer";
    case Role::operator_: return "operator";
    case Role::admin: return "admin";
    }
    return "none";
}

} // namespace dstack::schema
