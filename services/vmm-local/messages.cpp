#include "services/vmm-local/messages.hpp"
#include "shared/crypto/hex.hpp"
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

namespace dstack::vmm
{

namespace
{
using nlohmann::json;

/// Reads one message; remembers the first mistake.
class Reader
{
  public:
    explicit Reader(const json& object, std::string where = {}) : object_(object), where_(std::move(where))
    {
        if (!object_.is_object()) { fail_text("invalid type: expected a JSON object"); }
    }
    std::optional<std::string>& mistake() { return mistake_; }

    void read(const char* key, std::string& out)
    {
        const json* value = find(key);
        if (value == nullptr) { return; }
        if (value->is_string()) { out = *value->get_ptr<const std::string*>(); }
        else { fail(key, "a string"); }
    }
    void read(const char* key, std::optional<std::string>& out)
    {
        const json* value = find(key);
        if (value == nullptr || value->is_null()) { return; }
        out.emplace();
        read(key, *out);
    }
    void read(const char* key, std::uint32_t& out)
    {
        const json* value = find(key);
        if (value == nullptr) { return; }
        if (value->is_number_unsigned())
        {
            const auto wide = *value->get_ptr<const json::number_unsigned_t*>();
            if (wide <= std::numeric_limits<std::uint32_t>::max())
            {
                out = static_cast<std::uint32_t>(wide);
                return;
            }
        }
        else if (value->is_string()) // from a query
        {
            const auto& text = *value->get_ptr<const std::string*>();
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
            if (error == std::errc{} && end == text.data() + text.size()) { return; }
        }
        fail(key, "a u32");
    }
    void read(const char* key, bool& out)
    {
        const json* value = find(key);
        if (value == nullptr) { return; }
        if (value->is_boolean()) { out = *value->get_ptr<const bool*>(); }
        else if (*value == "true" || *value == "false") { out = *value == "true"; }
        else { fail(key, "a boolean"); }
    }
    void read(const char* key, std::vector<std::string>& out)
    {
        const json* value = find(key);
        if (value == nullptr) { return; }
        if (!value->is_array()) { return fail(key, "a list of strings"); }
        for (const auto& item : *value)
        {
            if (!item.is_string()) { return fail(key, "a list of strings"); }
            out.push_back(*item.get_ptr<const std::string*>());
        }
    }
    void read_bytes(const char* key, std::string& out)
    {
        std::string digits;
        read(key, digits);
        std::string_view rest = digits;
        while (rest.substr(0, 2) == "0x") { rest.remove_prefix(2); }
        if (rest.empty()) { return; }
        const auto bytes = crypto::from_hex(rest);
        if (!bytes || rest.substr(0, 2) == "0X") { return fail(key, "bytes as hex digits"); }
        out = crypto::text(*bytes);
    }
    template <class T>
    void read_list(const char* key, std::vector<T>& out, void (*element)(Reader&, T&))
    {
        const json* value = find(key);
        if (value == nullptr) { return; }
        if (!value->is_array()) { return fail(key, "a list"); }
        for (const auto& item : *value)
        {
            Reader reader{item, where_ + key + "."};
            out.emplace_back();
            element(reader, out.back());
            adopt(reader);
        }
    }
    template <class T>
    void read_message(const char* key, std::optional<T>& out, void (*element)(Reader&, T&))
    {
        const json* value = find(key);
        if (value == nullptr || value->is_null()) { return; }
        Reader reader{*value, where_ + key + "."};
        out.emplace();
        element(reader, *out);
        adopt(reader);
    }

  private:
    const json* find(const char* key) const
    {
        if (!object_.is_object()) { return nullptr; }
        const auto it = object_.find(key);
        return it == object_.end() ? nullptr : &*it;
    }
    void fail(const char* key, std::string_view expected)
    {
        fail_text("invalid value for `" + where_ + key + "`: expected " + std::string{expected});
    }
    void fail_text(std::string text)
    {
        if (!mistake_) { mistake_ = std::move(text); }
    }
    void adopt(Reader& inner)
    {
        if (inner.mistake_) { fail_text(*inner.mistake_); }
    }
    const json& object_;
    std::string where_;
    std::optional<std::string> mistake_;
};

template <class T>
Result<T> decode(std::string_view text, void (*read)(Reader&, T&))
{
    T out;
    if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) { return out; }
    const json document = json::parse(text, nullptr, false);
    if (document.is_discarded()) { return Error{Errc::invalid_argument, "invalid JSON in the request body"}; }
    Reader reader{document};
    read(reader, out);
    if (reader.mistake()) { return Error{Errc::invalid_argument, *reader.mistake()}; }
    return out;
}

void read_port(Reader& r, PortMapping& out)
{
    r.read("protocol", out.protocol);
    r.read("host_port", out.host_port);
    r.read("vm_port", out.vm_port);
    r.read("host_address", out.host_address);
}

void read_networking(Reader& r, Networking& out)
{
    r.read("mode", out.mode);
    r.read("bridge_name", out.bridge_name);
}

void read_slot(Reader& r, std::string& out) { r.read("slot", out); }

void read_gpus(Reader& r, GpuConfig& out)
{
    r.read_list<std::string>("gpus", out.slots, read_slot);
    r.read("attach_mode", out.attach_mode);
}

void read_configuration(Reader& r, VmConfiguration& out)
{
    r.read("name", out.name);
    r.read("image", out.image);
    r.read("compose_file", out.compose_file);
    r.read("vcpu", out.vcpu);
    r.read("memory", out.memory);
    r.read("disk_size", out.disk_size);
    r.read_list<PortMapping>("ports", out.ports, read_port);
    r.read_bytes("encrypted_env", out.encrypted_env);
    r.read("app_id", out.app_id);
    r.read("user_config", out.user_config);
    r.read("hugepages", out.hugepages);
    r.read("pin_numa", out.pin_numa);
    r.read_message<GpuConfig>("gpus", out.gpus, read_gpus);
    r.read("kms_urls", out.kms_urls);
    r.read("gateway_urls", out.gateway_urls);
    r.read("stopped", out.stopped);
    r.read("no_tee", out.no_tee);
    r.read_message<Networking>("networking", out.networking, read_networking);
    r.read_list<Networking>("networks", out.networks, read_networking);
    r.read("simulated_tee", out.simulated_tee);
    r.read("vm_id", out.vm_id);
    r.read("cid", out.cid);
}

void read_status(Reader& r, StatusRequest& out)
{
    r.read("ids", out.ids);
    r.read("brief", out.brief);
    r.read("keyword", out.keyword);
    r.read("page", out.page);
    r.read("page_size", out.page_size);
}

void read_id(Reader& r, IdRequest& out) { r.read("id", out.id); }

void read_notify(Reader& r, NotifyRequest& out)
{
    r.read("event", out.event);
    r.read("payload", out.payload);
}

int hex_digit(char c)
{
    if (c >= '0' && c <= '9') { return c - '0'; }
    if (c >= 'a' && c <= 'f') { return c - 'a' + 10; }
    if (c >= 'A' && c <= 'F') { return c - 'A' + 10; }
    return -1;
}

std::string decode_component(std::string_view text)
{
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i)
    {
        if (text[i] == '%' && i + 2 < text.size() && hex_digit(text[i + 1]) >= 0 && hex_digit(text[i + 2]) >= 0)
        {
            out.push_back(static_cast<char>(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2])));
            i += 2;
        }
        else { out.push_back(text[i] == '+' ? ' ' : text[i]); }
    }
    return out;
}
} // namespace

Result<VmConfiguration> decode_vm_configuration(std::string_view text) { return decode<VmConfiguration>(text, read_configuration); }
Result<StatusRequest> decode_status(std::string_view text) { return decode<StatusRequest>(text, read_status); }
Result<IdRequest> decode_id(std::string_view text) { return decode<IdRequest>(text, read_id); }
Result<NotifyRequest> decode_notify(std::string_view text) { return decode<NotifyRequest>(text, read_notify); }

std::string query_to_json(std::string_view query)
{
    json out = json::object();
    while (!query.empty())
    {
        const auto end = std::min(query.find('&'), query.size());
        const std::string_view part = query.substr(0, end);
        query.remove_prefix(std::min(end + 1, query.size()));
        const auto equals = std::min(part.find('='), part.size());
        std::string key = decode_component(part.substr(0, equals));
        std::string value = decode_component(part.substr(std::min(equals + 1, part.size())));
        const auto bracket = key.find('[');
        if (key.empty()) { continue; }
        if (bracket == std::string::npos) { out[key] = std::move(value); }
        else
        {
            json& list = out[key.substr(0, bracket)];
            if (!list.is_array()) { list = json::array(); }
            list.push_back(std::move(value));
        }
    }
    return out.dump(-1, ' ', false, json::error_handler_t::replace);
}

} // namespace dstack::vmm
