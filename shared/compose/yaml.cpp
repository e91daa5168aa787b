#include "shared/compose/yaml.hpp"
#include <libfyaml.h>
#include <map>
#include <memory>
#include <set>

namespace dstack::compose
{

const Yaml* Yaml::find(std::string_view key) const
{
    for (const auto& [name, value] : keys)
    {
        if (name == key) { return &value; }
    }
    return nullptr;
}

namespace
{

Error at(int line, std::string what, std::string hint = {})
{
    return {Errc::invalid_argument, "line " + std::to_string(line) + ": " + std::move(what), std::move(hint), {}};
}

std::string token_text(fy_token* token)
{
    std::size_t size = 0;
    const char* text = token == nullptr ? nullptr : fy_token_get_text(token, &size);
    return text == nullptr ? std::string{} : std::string{text, size};
}

int token_line(fy_token* token)
{
    const fy_mark* mark = token == nullptr ? nullptr : fy_token_start_mark(token);
    return mark == nullptr ? 0 : mark->line + 1;
}

bool is_null(const std::string& text)
{
    return text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL";
}

/// What an anchor stands for, and what a copy of it costs.
struct Anchored
{
    Yaml node;
    std::size_t nodes = 0;
    std::size_t bytes = 0;
    std::size_t depth = 0;
};

struct EventFree
{
    fy_parser* parser;
    void operator()(fy_event* event) const { fy_parser_event_free(parser, event); }
};
using Event = std::unique_ptr<fy_event, EventFree>;

/// Recursive descent over libfyaml's events, so that a bomb is refused before it is expanded. libfyaml's own
/// documents resolve aliases first and ask afterwards: 9^9 copies took 11 s and 4 GB.
class Reader
{
  public:
    Reader(std::string_view text, const YamlLimits& limits) : limits_(limits)
    {
        fy_diag_cfg diag_config{};
        fy_diag_cfg_default(&diag_config);
        diag_config.fp = nullptr;
        diag_config.output_fn = [](fy_diag*, void*, const char*, std::size_t) {};
        diag_.reset(fy_diag_create(&diag_config));
        if (!diag_) { return; }
        fy_diag_set_collect_errors(diag_.get(), true);
        fy_parse_cfg config{};
        config.search_path = "";
        config.flags = static_cast<fy_parse_cfg_flags>(FYPCF_QUIET | FYPCF_COLLECT_DIAG);
        config.diag = diag_.get();
        parser_.reset(fy_parser_create(&config));
        if (parser_ && fy_parser_set_string(parser_.get(), text.data(), text.size()) != 0) { parser_.reset(); }
    }

    Result<Yaml> document()
    {
        if (!parser_) { return Error{Errc::internal, "the YAML parser could not be made", {}, {}}; }
        Result<Yaml> root = Yaml{};
        bool seen = false;
        for (;;)
        {
            Event event = next();
            if (!event) { return failure(); }
            if (event->type == FYET_STREAM_START || event->type == FYET_DOCUMENT_END) { continue; }
            if (event->type == FYET_STREAM_END) { break; }
            if (event->type == FYET_DOCUMENT_START)
            {
                if (seen) { return at(line_, "a second document begins here: a compose file is one document"); }
                seen = true;
                continue;
            }
            auto node = read(std::move(event), 0);
            if (!node) { return node; }
            root = std::move(node);
        }
        return root;
    }

  private:
    struct ParserFree
    {
        void operator()(fy_parser* parser) const { fy_parser_destroy(parser); }
    };
    struct DiagFree
    {
        void operator()(fy_diag* diag) const { fy_diag_destroy(diag); }
    };

    Event next() { return Event{fy_parser_parse(parser_.get()), EventFree{parser_.get()}}; }

    Error failure()
    {
        void* position = nullptr;
        while (const fy_diag_error* error = fy_diag_errors_iterate(diag_.get(), &position))
        {
            std::string message = error->msg == nullptr ? "not YAML" : error->msg;
            while (!message.empty() && (message.back() == '\n' || message.back() == ' ')) { message.pop_back(); }
            return at(error->line > 0 ? error->line : line_, "not valid YAML: " + message,
                      "check the indentation and the quotes around this line");
        }
        return at(line_, "not valid YAML", "check the indentation and the quotes around this line");
    }

    Result<Done> count(std::size_t nodes, std::size_t bytes, std::size_t depth)
    {
        nodes_ += nodes;
        bytes_ += bytes;
        if (nodes_ > limits_.nodes || bytes_ > 4 * limits_.bytes)
        {
            return at(line_, "more than " + std::to_string(limits_.nodes) + " values once aliases are copied",
                      "write fewer or smaller aliases");
        }
        if (depth > limits_.depth)
        {
            return at(line_, "nested deeper than " + std::to_string(limits_.depth) + " levels");
        }
        return Done{};
    }

    Result<Yaml> read(Event event, std::size_t depth)
    {
        fy_token* token = fy_event_get_token(event.get());
        if (const int line = token_line(token); line > 0) { line_ = line; }
        if (event->type == FYET_ALIAS) { return copy(token_text(event->alias.anchor), depth); }

        if (fy_token* tag = fy_event_get_tag_token(event.get()); tag != nullptr)
        {
            return at(line_, "the tag " + token_text(tag) + " is not supported", "write the value without a tag");
        }
        if (auto fits = count(1, 0, depth); !fits) { return std::move(fits).error(); }

        const std::string anchor = token_text(fy_event_get_anchor_token(event.get()));
        const std::size_t nodes_before = nodes_, bytes_before = bytes_;
        const std::size_t deepest_outside = deepest_;
        deepest_ = depth;
        if (!anchor.empty()) { open_.insert(anchor); }
        Result<Yaml> node = Yaml{};
        if (event->type == FYET_SCALAR) { node = scalar(event->scalar.value); }
        else if (event->type == FYET_SEQUENCE_START) { node = list(depth); }
        else if (event->type == FYET_MAPPING_START) { node = map(depth); }
        else { return at(line_, "not valid YAML"); }
        if (!node) { return node; }
        if (!anchor.empty())
        {
            open_.erase(anchor);
            anchors_[anchor] = {*node, nodes_ - nodes_before + 1, bytes_ - bytes_before, deepest_ - depth};
            // what is kept for copies is memory as well
            if (auto fits = count(nodes_ - nodes_before + 1, bytes_ - bytes_before, depth); !fits)
            {
                return std::move(fits).error();
            }
        }
        deepest_ = std::max(deepest_, deepest_outside);
        return node;
    }

    Result<Yaml> copy(const std::string& name, std::size_t depth)
    {
        const auto found = anchors_.find(name);
        if (open_.contains(name)) { return at(line_, "the alias *" + name + " refers to itself"); }
        if (found == anchors_.end()) { return at(line_, "the alias *" + name + " names no anchor before it"); }
        if (auto fits = count(found->second.nodes, found->second.bytes, depth + found->second.depth); !fits)
        {
            return std::move(fits).error();
        }
        deepest_ = std::max(deepest_, depth + found->second.depth);
        return found->second.node;
    }

    Result<Yaml> scalar(fy_token* value)
    {
        Yaml out;
        out.line = line_;
        out.text = token_text(value);
        out.plain = value == nullptr || fy_token_scalar_style(value) == FYSS_PLAIN;
        if (out.text.find('\0') != std::string::npos) { return at(line_, "a value contains a NUL byte"); }
        if (auto fits = count(0, out.text.size(), 0); !fits) { return std::move(fits).error(); }
        out.kind = out.plain && is_null(out.text) ? Yaml::Kind::null : Yaml::Kind::scalar;
        return out;
    }

    Result<Yaml> list(std::size_t depth)
    {
        Yaml out;
        out.kind = Yaml::Kind::list;
        out.line = line_;
        for (;;)
        {
            Event event = next();
            if (!event) { return failure(); }
            if (event->type == FYET_SEQUENCE_END) { return out; }
            auto item = read(std::move(event), depth + 1);
            if (!item) { return item; }
            out.items.push_back(std::move(*item));
        }
    }

    Result<Yaml> map(std::size_t depth)
    {
        Yaml out;
        out.kind = Yaml::Kind::map;
        out.line = line_;
        std::set<std::string, std::less<>> own;
        std::vector<Yaml> merged;
        for (;;)
        {
            Event event = next();
            if (!event) { return failure(); }
            if (event->type == FYET_MAPPING_END) { break; }
            if (event->type == FYET_MAPPING_START || event->type == FYET_SEQUENCE_START)
            {
                return at(line_, "a key must be a plain word");
            }
            auto key = read(std::move(event), depth + 1);
            if (!key) { return key; }
            if (key->kind == Yaml::Kind::list || key->kind == Yaml::Kind::map)
            {
                return at(line_, "a key must be a plain word");
            }
            const int line = line_;
            Event value_event = next();
            if (!value_event) { return failure(); }
            auto value = read(std::move(value_event), depth + 1);
            if (!value) { return value; }
            value->line = line;
            if (key->text == "<<" && key->plain)
            {
                auto sources = merge_sources(std::move(*value), line);
                if (!sources) { return std::move(sources).error(); }
                for (Yaml& source : *sources) { merged.push_back(std::move(source)); }
                continue;
            }
            if (!own.insert(key->text).second)
            {
                return at(line, "the key " + key->text + " is there twice", "remove one of the two");
            }
            out.keys.emplace_back(std::move(key->text), std::move(*value));
        }
        for (Yaml& source : merged) // earlier sources win, own keys win over all
        {
            for (auto& [name, value] : source.keys)
            {
                if (own.insert(name).second) { out.keys.emplace_back(name, std::move(value)); }
            }
        }
        return out;
    }

    static Result<std::vector<Yaml>> merge_sources(Yaml value, int line)
    {
        std::vector<Yaml> out;
        if (value.kind == Yaml::Kind::map) { out.push_back(std::move(value)); }
        else if (value.kind == Yaml::Kind::list) { out = std::move(value.items); }
        else { return at(line, "<< must be a mapping or a list of mappings"); }
        for (const Yaml& source : out)
        {
            if (source.kind != Yaml::Kind::map) { return at(line, "<< must be a mapping or a list of mappings"); }
        }
        return out;
    }

    YamlLimits limits_;
    std::unique_ptr<fy_diag, DiagFree> diag_;
    std::unique_ptr<fy_parser, ParserFree> parser_;
    std::map<std::string, Anchored> anchors_;
    std::set<std::string> open_; ///< anchors whose node is being read
    std::size_t nodes_ = 0, bytes_ = 0, deepest_ = 0;
    int line_ = 1;
};

} // namespace

Result<Yaml> parse_yaml(std::string_view text, const YamlLimits& limits)
{
    if (text.size() > limits.bytes)
    {
        return Error{Errc::invalid_argument,
                     "the file has " + std::to_string(text.size()) + " bytes, at most " + std::to_string(limits.bytes) +
                         " are read",
                     {},
                     {}};
    }
    if (text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff") || text.find('\0') != std::string_view::npos)
    {
        return at(1, "not valid YAML: the file is not UTF-8 text", "save it as UTF-8");
    }
    return Reader{text, limits}.document();
}

} // namespace dstack::compose
