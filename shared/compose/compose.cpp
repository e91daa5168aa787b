#include "shared/compose/compose.hpp"
#include "shared/compose/image_reference.hpp"
#include "shared/compose/yaml.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <set>

namespace dstack::compose
{

namespace
{

using Kind = Yaml::Kind;

Error invalid(std::string what, std::string hint = {})
{
    return {Errc::invalid_argument, std::move(what), std::move(hint), {}};
}

std::string in_quotes(std::string_view text)
{
    std::string out{"'"};
    for (const char c : text.substr(0, 120)) { out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c; }
    return out + (text.size() > 120 ? "...'" : "'");
}

/// "line 7: service web: ports: ..."
struct Place
{
    int line = 0;
    std::string where{};

    Error error(std::string what, std::string hint = {}) const
    {
        return invalid("line " + std::to_string(line) + ": " + where + ": " + std::move(what), std::move(hint));
    }
    Error error(Error inner) const { return error(std::move(inner.message), std::move(inner.hint)); }
};

template <class T>
bool parse_number(std::string_view text, T low, T high, T& out)
{
    T value{};
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (code != std::errc{} || end != text.data() + text.size() || value < low || value > high) { return false; }
    out = value;
    return true;
}

class Parser
{
  public:
    explicit Parser(const Variables& variables) : variables_(variables) {}
    Result<ComposeApp> app(const Yaml& root);

  private:
    struct Context
    {
        Place place{};
        Service* service = nullptr;
    };
    using Reader = Result<Done> (Parser::*)(const Yaml&, Context&);
    struct Key
    {
        std::string_view name;
        Reader read; ///< null: passed over
    };

    Result<Done> volumes(const Yaml* node);
    Result<Service> service(const std::string& name, const Yaml& node);

    Result<std::string> text(const Yaml& node, const Place& place) const;
    Result<bool> boolean(const Yaml& node, const Place& place) const;
    Result<std::vector<std::string>> texts(const Yaml& node, const Place& place) const;
    Result<std::vector<std::string>> words(const Yaml& node, const Place& place) const;

    Result<Done> image(const Yaml&, Context&);
    Result<Done> command(const Yaml&, Context&);
    Result<Done> entrypoint(const Yaml&, Context&);
    Result<Done> environment(const Yaml&, Context&);
    Result<Done> working_dir(const Yaml&, Context&);
    Result<Done> user(const Yaml&, Context&);
    Result<Done> hostname(const Yaml&, Context&);
    Result<Done> read_only(const Yaml&, Context&);
    Result<Done> restart(const Yaml&, Context&);
    Result<Done> ports(const Yaml&, Context&);
    Result<Done> tmpfs(const Yaml&, Context&);
    Result<Done> mounts(const Yaml&, Context&);
    Result<Done> depends_on(const Yaml&, Context&);

    static const std::array<Key, 21> keys;
    const Variables& variables_;
    std::vector<std::string> volumes_;
};

const std::array<Parser::Key, 21> Parser::keys{{
    {"image", &Parser::image},
    {"command", &Parser::command},
    {"entrypoint", &Parser::entrypoint},
    {"environment", &Parser::environment},
    {"working_dir", &Parser::working_dir},
    {"user", &Parser::user},
    {"hostname", &Parser::hostname},
    {"read_only", &Parser::read_only},
    {"restart", &Parser::restart},
    {"ports", &Parser::ports},
    {"tmpfs", &Parser::tmpfs},
    {"volumes", &Parser::mounts},
    {"depends_on", &Parser::depends_on},
    {"labels", nullptr},
    {"container_name", nullptr},
    {"logging", nullptr},
    {"expose", nullptr}, // containers share the guest's network
    {"pull_policy", nullptr},
    {"annotations", nullptr},
    {"attach", nullptr},
    {"develop", nullptr},
}};

std::string_view why_refused(std::string_view key)
{
    struct Reason
    {
        std::string_view key, hint;
    };
    static constexpr std::array<Reason, 9> reasons{{
        {"build", "images are not built in the guest: build it elsewhere, import it with dstackup image import, and "
                  "name it with image:"},
        {"env_file", "the guest has no such file: write the values under environment:"},
        {"networks", "all services share the guest's network and find each other by service name: remove it"},
        {"network_mode", "all services share the guest's network: remove it"},
        {"links", "all services find each other by service name: remove it"},
        {"privileged", "containers run with reduced rights: remove it"},
        {"deploy", "resources are those of the VM: remove it"},
        {"healthcheck", "a service counts as started when its ports answer: remove it"},
        {"secrets", "write the values under environment:"},
    }};
    for (const Reason& reason : reasons)
    {
        if (reason.key == key) { return reason.hint; }
    }
    return "remove it, or see docs for the keys that the guest supports";
}

bool is_name(std::string_view name)
{
    const auto good = [](char c)
    {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
               c == '.';
    };
    return !name.empty() && name.size() <= 63 && name.front() != '.' && name.front() != '-' &&
           std::ranges::all_of(name, good);
}

bool is_container_path(std::string_view path)
{
    if (path.size() < 2 || path.size() > 1024 || path.front() != '/') { return false; }
    const std::string slashed = std::string{path} + "/";
    return slashed.find("/../") == std::string::npos && slashed.find("/./") == std::string::npos &&
           path.find(',') == std::string_view::npos;
}

Result<std::string> Parser::text(const Yaml& node, const Place& place) const
{
    if (node.kind != Kind::scalar) { return place.error("a text is expected here"); }
    auto value = interpolate(node.text, variables_);
    if (!value) { return place.error(std::move(value).error()); }
    return value;
}

Result<bool> Parser::boolean(const Yaml& node, const Place& place) const
{
    auto value = text(node, place);
    if (!value) { return std::move(value).error(); }
    if (*value == "true" || *value == "True" || *value == "TRUE") { return true; }
    if (*value == "false" || *value == "False" || *value == "FALSE") { return false; }
    return place.error("true or false is expected, got " + in_quotes(*value));
}

Result<std::vector<std::string>> Parser::texts(const Yaml& node, const Place& place) const
{
    std::vector<std::string> out;
    for (const Yaml& item : node.items)
    {
        auto value = text(item, {item.line > 0 ? item.line : place.line, place.where});
        if (!value) { return std::move(value).error(); }
        out.push_back(std::move(*value));
    }
    return out;
}

/// A command: a list is taken as it is, a text is split as a shell would.
Result<std::vector<std::string>> Parser::words(const Yaml& node, const Place& place) const
{
    if (node.kind == Kind::list) { return texts(node, place); }
    auto line = text(node, place);
    if (!line) { return std::move(line).error(); }
    auto out = split_words(*line);
    if (!out) { return place.error(std::move(out).error()); }
    return out;
}

Result<Done> Parser::image(const Yaml& node, Context& at)
{
    auto value = text(node, at.place);
    if (!value) { return std::move(value).error(); }
    auto full = normalize_image(*value);
    if (!full) { return at.place.error(std::move(full).error()); }
    at.service->image = std::move(*full);
    return Done{};
}

Result<Done> Parser::command(const Yaml& node, Context& at)
{
    if (node.kind == Kind::null) { return Done{}; }
    auto value = words(node, at.place);
    if (!value) { return std::move(value).error(); }
    at.service->command = std::move(*value);
    return Done{};
}

Result<Done> Parser::entrypoint(const Yaml& node, Context& at)
{
    if (node.kind == Kind::null) { return Done{}; }
    auto value = words(node, at.place);
    if (!value) { return std::move(value).error(); }
    at.service->entrypoint = std::move(*value);
    return Done{};
}

Result<Done> Parser::environment(const Yaml& node, Context& at)
{
    std::vector<std::pair<std::string, std::string>> out;
    std::set<std::string> seen;
    const auto add = [&](std::string key, std::string value) -> Result<Done>
    {
        if (key.empty() || key.find('=') != std::string::npos)
        {
            return at.place.error(in_quotes(key) + " is not a variable's name");
        }
        if (!seen.insert(key).second) { return at.place.error("the variable " + key + " is there twice"); }
        out.emplace_back(std::move(key), std::move(value));
        return Done{};
    };
    const auto no_value = [&](const Place& place, const std::string& key)
    {
        return place.error("the variable " + key + " has no value",
                           "the guest has no environment of a host to take it from: write " + key + "=value");
    };

    if (node.kind == Kind::map)
    {
        for (const auto& [key, value] : node.keys)
        {
            const Place place{value.line, at.place.where};
            if (value.kind == Kind::null) { return no_value(place, key); }
            auto content = text(value, place);
            if (!content) { return std::move(content).error(); }
            if (auto added = add(key, std::move(*content)); !added) { return added; }
        }
    }
    else if (node.kind == Kind::list)
    {
        auto lines = texts(node, at.place);
        if (!lines) { return std::move(lines).error(); }
        for (const std::string& line : *lines)
        {
            const std::size_t equals = line.find('=');
            if (equals == std::string::npos) { return no_value(at.place, line); }
            if (auto added = add(line.substr(0, equals), line.substr(equals + 1)); !added) { return added; }
        }
    }
    else if (node.kind == Kind::scalar) { return at.place.error("a mapping or a list of NAME=value is expected"); }
    at.service->environment = std::move(out);
    return Done{};
}

Result<Done> Parser::working_dir(const Yaml& node, Context& at)
{
    auto value = text(node, at.place);
    if (!value) { return std::move(value).error(); }
    if (*value != "/" && !is_container_path(*value))
    {
        return at.place.error("an absolute path is expected, got " + in_quotes(*value));
    }
    at.service->working_dir = std::move(*value);
    return Done{};
}

Result<Done> Parser::user(const Yaml& node, Context& at)
{
    auto value = text(node, at.place);
    if (!value) { return std::move(value).error(); }
    const auto good = [](char c)
    {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
               c == ':';
    };
    if (value->empty() || value->size() > 64 || !std::ranges::all_of(*value, good) ||
        std::ranges::count(*value, ':') > 1)
    {
        return at.place.error("name, uid or uid:gid is expected, got " + in_quotes(*value));
    }
    at.service->user = std::move(*value);
    return Done{};
}

Result<Done> Parser::hostname(const Yaml& node, Context& at)
{
    auto value = text(node, at.place);
    if (!value) { return std::move(value).error(); }
    if (!is_name(*value)) { return at.place.error(in_quotes(*value) + " is not a host name"); }
    at.service->hostname = std::move(*value);
    return Done{};
}

Result<Done> Parser::read_only(const Yaml& node, Context& at)
{
    auto value = boolean(node, at.place);
    if (!value) { return std::move(value).error(); }
    at.service->read_only = *value;
    return Done{};
}

Result<Done> Parser::restart(const Yaml& node, Context& at)
{
    auto value = text(node, at.place);
    if (!value) { return std::move(value).error(); }
    Restart& out = at.service->restart;
    const std::string_view word = *value;
    constexpr std::string_view limited = "on-failure:";
    if (word == "no") { out = {Restart::Policy::no, 0}; }
    else if (word == "always") { out = {Restart::Policy::always, 0}; }
    else if (word == "unless-stopped") { out = {Restart::Policy::unless_stopped, 0}; }
    else if (word == "on-failure") { out = {Restart::Policy::on_failure, 0}; }
    else if (word.starts_with(limited) && parse_number(word.substr(limited.size()), 1U, 1000U, out.max_attempts))
    {
        out.policy = Restart::Policy::on_failure;
    }
    else
    {
        return at.place.error(in_quotes(word) + " is not a restart policy",
                              "use no, always, unless-stopped, on-failure or on-failure:3");
    }
    return Done{};
}

/// "80", "8080:80", "127.0.0.1:8080:80", each with an optional "/tcp".
Result<Port> short_port(std::string_view spec)
{
    const Error refused = invalid(in_quotes(spec) + " is not a port", "write 80, 8080:80 or 127.0.0.1:8080:80");
    std::string_view rest = spec;
    if (const std::size_t slash = rest.find('/'); slash != std::string_view::npos)
    {
        const std::string_view protocol = rest.substr(slash + 1);
        if (protocol == "udp" || protocol == "sctp")
        {
            return invalid(in_quotes(spec) + ": only tcp ports can be published", "remove it");
        }
        if (protocol != "tcp") { return refused; }
        rest = rest.substr(0, slash);
    }
    if (rest.find('-') != std::string_view::npos)
    {
        return invalid(in_quotes(spec) + ": port ranges are not supported", "write one line per port");
    }
    Port out;
    const std::size_t last = rest.rfind(':');
    const std::string_view target = last == std::string_view::npos ? rest : rest.substr(last + 1);
    if (!parse_number<std::uint16_t>(target, 1, 65535, out.target)) { return refused; }
    out.published = out.target;
    if (last == std::string_view::npos) { return out; }
    rest = rest.substr(0, last);
    const std::size_t before = rest.rfind(':');
    const std::string_view published = before == std::string_view::npos ? rest : rest.substr(before + 1);
    if (!parse_number<std::uint16_t>(published, 1, 65535, out.published)) { return refused; }
    if (before == std::string_view::npos) { return out; }
    const std::string_view address = rest.substr(0, before);
    if (address != "0.0.0.0" && address != "127.0.0.1")
    {
        return invalid(in_quotes(spec) + ": the address must be 0.0.0.0 or 127.0.0.1 (of the guest)");
    }
    out.host_ip = address;
    return out;
}

Result<Done> Parser::ports(const Yaml& node, Context& at)
{
    if (node.kind == Kind::null) { return Done{}; }
    if (node.kind != Kind::list) { return at.place.error("a list is expected"); }
    for (const Yaml& item : node.items)
    {
        const Place place{item.line, at.place.where};
        if (item.kind == Kind::map) { return place.error("the long form is not supported", "write it as \"8080:80\""); }
        auto value = text(item, place);
        if (!value) { return std::move(value).error(); }
        auto port = short_port(*value);
        if (!port) { return place.error(std::move(port).error()); }
        at.service->ports.push_back(std::move(*port));
    }
    return Done{};
}

/// "/run" or "/run:size=64m,mode=1777"
Result<Mount> tmpfs_mount(std::string_view spec)
{
    const std::size_t colon = spec.find(':');
    Mount out{Mount::Kind::tmpfs, {}, std::string{spec.substr(0, colon)}, {}, false};
    if (!is_container_path(out.target)) { return invalid("an absolute path is expected, got " + in_quotes(out.target)); }
    if (colon == std::string_view::npos) { return out; }
    std::string_view rest = spec.substr(colon + 1);
    while (!rest.empty())
    {
        const std::size_t comma = rest.find(',');
        const std::string_view option = rest.substr(0, comma);
        rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
        const std::string_view name = option.substr(0, option.find('='));
        const bool valued = name == "size" || name == "mode" || name == "uid" || name == "gid" || name == "nr_inodes";
        const std::string_view value =
            option.size() > name.size() ? option.substr(name.size() + 1) : std::string_view{};
        const bool flag =
            option == "rw" || option == "noexec" || option == "exec" || option == "nosuid" || option == "nodev";
        const bool value_good =
            !value.empty() &&
            std::ranges::all_of(value, [](char c)
                                { return (c >= '0' && c <= '9') || c == 'k' || c == 'm' || c == 'g' || c == '%'; });
        if (option == "ro") { out.read_only = true; }
        else if (flag || (valued && value_good))
        {
            out.options += (out.options.empty() ? "" : ",") + std::string{option};
        }
        else
        {
            return invalid("the tmpfs option " + in_quotes(option) + " is not supported",
                           "use size=, mode=, uid=, gid=, ro, noexec");
        }
    }
    return out;
}

Result<Done> Parser::tmpfs(const Yaml& node, Context& at)
{
    if (node.kind == Kind::null) { return Done{}; }
    std::vector<std::string> specs;
    if (node.kind == Kind::list)
    {
        auto list = texts(node, at.place);
        if (!list) { return std::move(list).error(); }
        specs = std::move(*list);
    }
    else
    {
        auto one = text(node, at.place);
        if (!one) { return std::move(one).error(); }
        specs.push_back(std::move(*one));
    }
    for (const std::string& spec : specs)
    {
        auto mount = tmpfs_mount(spec);
        if (!mount) { return at.place.error(std::move(mount).error()); }
        at.service->mounts.push_back(std::move(*mount));
    }
    return Done{};
}

Result<Done> Parser::mounts(const Yaml& node, Context& at)
{
    if (node.kind == Kind::null) { return Done{}; }
    if (node.kind != Kind::list) { return at.place.error("a list is expected"); }
    for (const Yaml& item : node.items)
    {
        const Place place{item.line, at.place.where};
        if (item.kind == Kind::map)
        {
            return place.error("the long form is not supported", "write it as \"data:/var/lib/app\"");
        }
        auto spec = text(item, place);
        if (!spec) { return std::move(spec).error(); }
        const std::size_t colon = spec->find(':');
        Mount mount{Mount::Kind::volume, spec->substr(0, colon), {}, {}, false};
        if (colon == std::string::npos || mount.source.starts_with('/') || mount.source.starts_with('.') ||
            mount.source.starts_with('~'))
        {
            return place.error(in_quotes(*spec) + ": the guest has no files of the host to mount",
                               "put the files into the image, or use a named volume (data:/path) or tmpfs");
        }
        mount.target = spec->substr(colon + 1);
        if (const std::size_t mode = mount.target.find(':'); mode != std::string::npos)
        {
            const std::string word = mount.target.substr(mode + 1);
            if (word != "ro" && word != "rw") { return place.error(in_quotes(*spec) + ": the mode must be ro or rw"); }
            mount.read_only = word == "ro";
            mount.target.resize(mode);
        }
        if (!is_container_path(mount.target))
        {
            return place.error(in_quotes(*spec) + ": an absolute path is expected after the volume's name");
        }
        if (std::ranges::find(volumes_, mount.source) == volumes_.end())
        {
            return place.error("the volume " + in_quotes(mount.source) + " is not declared",
                               "add it under volumes: at the top level");
        }
        at.service->mounts.push_back(std::move(mount));
    }
    return Done{};
}

Result<Done> Parser::depends_on(const Yaml& node, Context& at)
{
    if (node.kind == Kind::null) { return Done{}; }
    if (node.kind == Kind::list)
    {
        auto list = texts(node, at.place);
        if (!list) { return std::move(list).error(); }
        at.service->depends_on = std::move(*list);
        return Done{};
    }
    if (node.kind != Kind::map) { return at.place.error("a list of services is expected"); }
    for (const auto& [name, value] : node.keys)
    {
        const Place place{value.line, at.place.where + ": " + name};
        if (value.kind != Kind::map) { return place.error("a mapping with condition is expected"); }
        for (const auto& [key, setting] : value.keys)
        {
            const Place inner{setting.line, place.where};
            if (key == "condition" && setting.text == "service_started") { continue; }
            if (key == "condition")
            {
                return inner.error("the condition " + in_quotes(setting.text) + " is not supported",
                                   "use service_started");
            }
            if (key == "required" && setting.text == "true") { continue; }
            return inner.error("the key " + in_quotes(key) + " is not supported", "remove it");
        }
        at.service->depends_on.push_back(name);
    }
    return Done{};
}

Result<Service> Parser::service(const std::string& name, const Yaml& node)
{
    const std::string where = "service " + (is_name(name) ? name : in_quotes(name));
    if (!is_name(name)) { return Place{node.line, where}.error("a name has 1 to 63 letters, digits and . _ -"); }
    if (node.kind != Kind::map) { return Place{node.line, where}.error("a mapping with image: is expected"); }
    Service out;
    out.name = name;
    for (const auto& [key, value] : node.keys)
    {
        if (key.starts_with("x-")) { continue; }
        const auto known = std::ranges::find(keys, std::string_view{key}, &Key::name);
        if (known == keys.end())
        {
            return Place{value.line, where}.error("the key " + in_quotes(key) + " is not supported",
                                                  std::string{why_refused(key)});
        }
        if (known->read == nullptr) { continue; }
        Context context{{value.line, where + ": " + key}, &out};
        if (auto read = (this->*known->read)(value, context); !read) { return std::move(read).error(); }
    }
    if (out.image.empty())
    {
        return Place{node.line, where}.error("it has no image",
                                             "add image: NAME; dstackup image ls shows what is there");
    }
    std::set<std::string> targets;
    for (const Mount& mount : out.mounts)
    {
        if (!targets.insert(mount.target).second)
        {
            return Place{node.line, where}.error("two mounts on " + mount.target, "remove one of them");
        }
    }
    return out;
}

Result<Done> Parser::volumes(const Yaml* node)
{
    if (node == nullptr || node->kind == Kind::null) { return Done{}; }
    if (node->kind != Kind::map) { return Place{node->line, "volumes"}.error("a mapping is expected"); }
    for (const auto& [name, value] : node->keys)
    {
        const Place place{value.line, "volumes: " + in_quotes(name)};
        if (!is_name(name)) { return place.error("a name has 1 to 63 letters, digits and . _ -"); }
        if (value.kind != Kind::null && !(value.kind == Kind::map && value.keys.empty()))
        {
            return place.error("options of volumes are not supported", "write the name alone: " + name + ":");
        }
        volumes_.push_back(name);
    }
    return Done{};
}

/// Containers share the guest's network: a port can have one listener only.
Result<Done> check_ports(const std::vector<Service>& services)
{
    struct Listener
    {
        std::uint16_t port;
        std::string owner;
    };
    std::vector<Listener> listeners;
    const auto claim = [&](std::uint16_t port, const std::string& owner) -> Result<Done>
    {
        for (const Listener& listener : listeners)
        {
            if (listener.port == port && listener.owner != owner)
            {
                return invalid("service " + owner + ": ports: " + std::to_string(port) + " is taken by service " +
                                   listener.owner,
                               "all services share the guest's network: have one of them listen on another port");
            }
        }
        listeners.push_back({port, owner});
        return Done{};
    };
    for (const Service& service : services)
    {
        std::set<std::uint16_t> published;
        for (const Port& port : service.ports)
        {
            if (!published.insert(port.published).second)
            {
                return invalid("service " + service.name + ": ports: " + std::to_string(port.published) +
                                   " is published twice",
                               "remove one of the two");
            }
            if (auto free = claim(port.target, service.name); !free) { return free; }
            if (auto free = claim(port.published, service.name); !free) { return free; }
        }
        for (const Port& port : service.ports)
        {
            for (const Port& other : service.ports)
            {
                if (port.published == other.target && port.published != port.target)
                {
                    return invalid("service " + service.name + ": ports: " + std::to_string(port.published) +
                                       " is both published and listened on inside",
                                   "publish on another port");
                }
            }
        }
    }
    return Done{};
}

/// Dependencies first; otherwise the order of the file.
Result<std::vector<Service>> start_order(std::vector<Service> services)
{
    enum class Mark
    {
        fresh,
        open,
        done,
    };
    std::vector<Mark> marks(services.size(), Mark::fresh);
    std::vector<std::size_t> order;
    const std::function<Result<Done>(std::size_t)> visit = [&](std::size_t index) -> Result<Done>
    {
        if (marks[index] == Mark::done) { return Done{}; }
        if (marks[index] == Mark::open)
        {
            return invalid("service " + services[index].name + ": depends_on: it depends on itself in the end",
                           "break the circle");
        }
        marks[index] = Mark::open;
        for (const std::string& name : services[index].depends_on)
        {
            const auto found = std::ranges::find(services, name, &Service::name);
            if (found == services.end())
            {
                return invalid("service " + services[index].name + ": depends_on: there is no service " + in_quotes(name),
                               "check the spelling");
            }
            if (auto visited = visit(static_cast<std::size_t>(found - services.begin())); !visited) { return visited; }
        }
        marks[index] = Mark::done;
        order.push_back(index);
        return Done{};
    };
    for (std::size_t i = 0; i < services.size(); ++i)
    {
        if (auto visited = visit(i); !visited) { return std::move(visited).error(); }
    }
    std::vector<Service> out;
    for (const std::size_t index : order) { out.push_back(std::move(services[index])); }
    return out;
}

Result<ComposeApp> Parser::app(const Yaml& root)
{
    if (root.kind != Kind::map)
    {
        return invalid("this is not a compose file: a mapping with services: is expected",
                       "begin with services:, then one block per service");
    }
    for (const auto& [key, value] : root.keys)
    {
        if (key == "services" || key == "volumes" || key == "version" || key == "name" || key.starts_with("x-"))
        {
            continue;
        }
        return Place{value.line, "top level"}.error("the key " + in_quotes(key) + " is not supported",
                                                    std::string{why_refused(key)});
    }
    const Yaml* services = root.find("services");
    if (services == nullptr || services->kind == Kind::null || (services->kind == Kind::map && services->keys.empty()))
    {
        return invalid("the compose file has no services", "add services: with at least one service");
    }
    if (services->kind != Kind::map) { return Place{services->line, "services"}.error("a mapping is expected"); }
    if (services->keys.size() > max_services)
    {
        return Place{services->line, "services"}.error("there are " + std::to_string(services->keys.size()) +
                                                       ", at most " + std::to_string(max_services) + " can run");
    }
    if (auto read = volumes(root.find("volumes")); !read) { return std::move(read).error(); }
    std::vector<Service> list;
    for (const auto& [name, node] : services->keys)
    {
        auto one = service(name, node);
        if (!one) { return std::move(one).error(); }
        list.push_back(std::move(*one));
    }
    if (auto free = check_ports(list); !free) { return std::move(free).error(); }
    auto ordered = start_order(std::move(list));
    if (!ordered) { return std::move(ordered).error(); }
    return ComposeApp{std::move(*ordered), volumes_};
}

} // namespace

Result<ComposeApp> parse_compose(std::string_view yaml, const Variables& variables)
{
    if (yaml.size() > max_compose_bytes)
    {
        return invalid("the compose file has " + std::to_string(yaml.size()) + " bytes, at most " +
                           std::to_string(max_compose_bytes) + " (256 KiB) are accepted",
                       "move data out of the compose file, into an image");
    }
    auto root = parse_yaml(yaml);
    if (!root) { return std::move(root).error(); }
    return Parser{variables}.app(*root);
}

} // namespace dstack::compose
