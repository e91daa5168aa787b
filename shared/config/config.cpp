#include "shared/config/config.hpp"
#include <algorithm>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
// pkg-config asks for Debian's shared library, which is built with exceptions: use the headers alone.
#undef TOML_HEADER_ONLY
#undef TOML_SHARED_LIB
#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

namespace dstack::config
{

namespace
{

struct Place
{
    std::uint32_t line = 1;
    std::uint32_t column = 1;
    auto operator<=>(const Place&) const = default;
};

Place place_of(const toml::source_region& region)
{
    return region.begin ? Place{region.begin.line, region.begin.column} : Place{};
}

struct Complaint
{
    Place place;
    std::string text;
    bool absent = false; ///< of a key that is not there: where it should be is a guess
    /// What is written wrong comes first: a mistyped key explains why the right one is missing.
    bool operator<(const Complaint& other) const
    {
        return std::tie(absent, place) < std::tie(other.absent, other.place);
    }
};

std::string at(Place place, std::string_view text)
{
    return "line " + std::to_string(place.line) + ", column " + std::to_string(place.column) + ": " + std::string{text};
}

/// Names from a hostile or mistyped file go to a terminal: keep them short and printable.
std::string shown(std::string_view name)
{
    std::string out;
    for (const char c : name.substr(0, 80)) { out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c; }
    if (name.size() > 80) { out += "..."; }
    return out;
}

std::string joined(const std::set<std::string, std::less<>>& names)
{
    std::string out;
    for (const std::string& name : names) { (out += out.empty() ? "" : ", ") += name; }
    return out;
}

std::string_view type_name(const toml::node& node)
{
    switch (node.type())
    {
    case toml::node_type::table:
        return "a table";
    case toml::node_type::array:
        return "an array";
    case toml::node_type::string:
        return "a string";
    case toml::node_type::integer:
        return "an integer";
    case toml::node_type::floating_point:
        return "a floating-point number";
    case toml::node_type::boolean:
        return "a boolean";
    case toml::node_type::date:
        return "a date";
    case toml::node_type::time:
        return "a time";
    case toml::node_type::date_time:
        return "a date and time";
    case toml::node_type::none:
        break;
    }
    return "nothing";
}

} // namespace

struct Document::State
{
    struct Known
    {
        std::set<std::string, std::less<>> keys;
        bool every_key = false;
    };

    toml::table root;
    std::map<std::string, Known, std::less<>> sections;
    std::vector<Complaint> complaints;

    static std::string path(std::string_view section, std::string_view key)
    {
        return section.empty() ? shown(key) : std::string{section} + "." + shown(key);
    }

    /// nullptr when the table, or one around it, is absent or is no table.
    const toml::table* table(std::string_view name) const
    {
        const toml::table* current = &root;
        while (!name.empty())
        {
            const auto dot = name.find('.');
            const toml::node* node = current->get(name.substr(0, dot));
            current = node != nullptr ? node->as_table() : nullptr;
            if (current == nullptr) { return nullptr; }
            name = dot == std::string_view::npos ? std::string_view{} : name.substr(dot + 1);
        }
        return current;
    }

    void know(std::string_view name)
    {
        sections.try_emplace(std::string{name});
        if (!name.empty())
        {
            const auto dot = name.rfind('.');
            know(dot == std::string_view::npos ? std::string_view{} : name.substr(0, dot));
        }
    }

    const toml::node* find(std::string_view section, std::string_view key)
    {
        sections[std::string{section}].keys.emplace(key);
        const toml::table* here = table(section);
        return here != nullptr ? here->get(key) : nullptr;
    }

    void complain(Place place, std::string text, bool absent = false)
    {
        complaints.push_back({place, std::move(text), absent});
    }
    void complain(const toml::node& node, std::string_view section, std::string_view key, std::string_view why)
    {
        complain(place_of(node.source()),
                 path(section, key) + ": " + std::string{why} + ", not " + std::string{type_name(node)});
    }

    bool is_section(const std::string& name) const { return sections.contains(name); }

    void check(const toml::table& here, const std::string& name)
    {
        const Known& known = sections.find(name)->second;
        if (known.every_key) { return; }
        for (const auto& [key, node] : here)
        {
            const std::string inner = name.empty() ? std::string{key.str()} : name + "." + std::string{key.str()};
            if (is_section(inner))
            {
                const toml::table* nested = node.as_table();
                if (nested != nullptr) { check(*nested, inner); }
                else if (!known.keys.contains(key.str())) { complain(node, name, key.str(), "must be a table"); }
            }
            else if (!known.keys.contains(key.str())) { complain_unknown(key, node, name); }
        }
    }

    void complain_unknown(const toml::key& key, const toml::node& node, const std::string& name)
    {
        std::set<std::string, std::less<>> names;
        const bool section = node.is_table();
        if (section)
        {
            for (const auto& [known, keys] : sections)
            {
                if (!known.empty()) { names.insert(known); }
            }
        }
        else { names = sections.find(name)->second.keys; }
        std::string text = path(name, key.str()) + (section ? ": unknown section" : ": unknown key");
        if (!names.empty()) { text += (section ? "; known sections: " : "; known keys: ") + joined(names); }
        complain(place_of(key.source()), std::move(text));
    }
};

Document::Document(std::unique_ptr<State> state) : state_(std::move(state)) {}
Document::Document(Document&&) noexcept = default;
Document& Document::operator=(Document&&) noexcept = default;
Document::~Document() = default;

Result<Document> Document::parse(std::string_view text)
{
    toml::parse_result parsed = toml::parse(text);
    if (!parsed)
    {
        const toml::parse_error& error = parsed.error();
        return Error{Errc::invalid_argument,
                     at(place_of(error.source()), "no valid TOML: " + shown(error.description())),
                     {},
                     {}};
    }
    auto state = std::make_unique<State>();
    state->root = std::move(parsed).table();
    state->know("");
    return Document{std::move(state)};
}

Section Document::section(std::string_view name)
{
    state_->know(name);
    return Section{state_.get(), std::string{name}};
}

std::vector<std::string> Document::tables_in(std::string_view name)
{
    state_->know(name);
    std::vector<std::string> out;
    if (const toml::table* here = state_->table(name))
    {
        for (const auto& [key, node] : *here)
        {
            if (node.is_table()) { out.emplace_back(key.str()); }
        }
    }
    return out;
}

Result<Done> Document::finish()
{
    state_->check(state_->root, "");
    std::vector<Complaint>& all = state_->complaints;
    if (all.empty()) { return Done{}; }
    const auto first = std::min_element(all.begin(), all.end());
    return Error{Errc::invalid_argument, at(first->place, first->text), {}, {}};
}

bool Section::present() const { return state_->table(name_) != nullptr; }

Section& Section::read(std::string_view key, std::string& out)
{
    if (const toml::node* node = state_->find(name_, key))
    {
        const auto* text = node->as_string();
        if (text == nullptr) { state_->complain(*node, name_, key, "must be a string"); }
        // C interfaces (open, bind) would stop at the zero byte and use another value than the one in the file
        else if (text->get().find('\0') != std::string::npos) { refuse(key, "must not contain a zero byte"); }
        else { out = text->get(); }
    }
    return *this;
}

Section& Section::read(std::string_view key, bool& out)
{
    if (const toml::node* node = state_->find(name_, key))
    {
        if (const auto* value = node->as_boolean()) { out = value->get(); }
        else { state_->complain(*node, name_, key, "must be true or false"); }
    }
    return *this;
}

Section& Section::read(std::string_view key, std::vector<std::string>& out)
{
    const toml::node* node = state_->find(name_, key);
    if (node == nullptr) { return *this; }
    const toml::array* array = node->as_array();
    if (array == nullptr)
    {
        state_->complain(*node, name_, key, "must be an array of strings");
        return *this;
    }
    std::vector<std::string> values;
    for (const toml::node& element : *array)
    {
        const auto* text = element.as_string();
        if (text == nullptr)
        {
            state_->complain(element, name_, key, "must hold only strings");
            return *this;
        }
        values.push_back(text->get());
    }
    out = std::move(values);
    return *this;
}

bool Section::read_integer(std::string_view key, std::int64_t& out, std::int64_t low, std::int64_t high)
{
    const toml::node* node = state_->find(name_, key);
    if (node == nullptr) { return false; }
    const std::string range = "must be an integer in " + std::to_string(low) + ".." + std::to_string(high);
    const auto* value = node->as_integer();
    if (value == nullptr)
    {
        state_->complain(*node, name_, key, range);
        return false;
    }
    if (value->get() < low || value->get() > high)
    {
        state_->complain(place_of(node->source()),
                         Document::State::path(name_, key) + ": " + range + ", not " + std::to_string(value->get()));
        return false;
    }
    out = value->get();
    return true;
}

Section& Section::read_ms(std::string_view key, std::chrono::milliseconds& out, std::int64_t low, std::int64_t high)
{
    std::int64_t value = 0;
    if (read_integer(key, value, low, high)) { out = std::chrono::milliseconds{value}; }
    return *this;
}

Section& Section::require(std::string_view key, std::string& out)
{
    const toml::node* node = state_->find(name_, key);
    if (node != nullptr)
    {
        read(key, out);
        if (node->is_string() && node->as_string()->get().empty()) { refuse(key, "must not be empty"); }
        return *this;
    }
    const toml::table* here = state_->table(name_);
    const Place place = here != nullptr ? place_of(here->source()) : Place{};
    state_->complain(place, Document::State::path(name_, key) + ": must be given", true);
    return *this;
}

Section& Section::read_choice(std::string_view key, std::string& out, const std::vector<std::string_view>& choices)
{
    std::string value = out;
    read(key, value);
    if (value == out || std::find(choices.begin(), choices.end(), value) != choices.end())
    {
        out = value;
        return *this;
    }
    std::string why = "must be one of";
    for (const std::string_view choice : choices) { ((why += choice == choices.front() ? " " : ", ") += choice); }
    return refuse(key, why);
}

Section& Section::read_map(std::map<std::string, std::string>& out)
{
    state_->sections[name_].every_key = true;
    const toml::table* here = state_->table(name_);
    if (here == nullptr) { return *this; }
    std::map<std::string, std::string> values;
    for (const auto& [key, node] : *here)
    {
        const auto* text = node.as_string();
        if (text == nullptr) { state_->complain(node, name_, key.str(), "must be a string"); }
        else { values.emplace(key.str(), text->get()); }
    }
    out = std::move(values);
    return *this;
}

Section& Section::refuse(std::string_view key, std::string_view why)
{
    const toml::node* node = state_->find(name_, key);
    const Place place = node != nullptr ? place_of(node->source()) : Place{};
    state_->complain(place, Document::State::path(name_, key) + ": " + std::string{why});
    return *this;
}

} // namespace dstack::config
