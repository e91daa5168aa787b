#include "services/vmm-local/manifest.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

namespace dstack::vmm
{

namespace
{
using nlohmann::ordered_json;

std::string dump(const ordered_json& value) { return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace); }

/// Typed fields of one object; the first mistake wins.
class Fields
{
  public:
    Fields(const ordered_json& object, const char* what) : object_(object), what_(what)
    {
        if (!object.is_object()) { fail("not a JSON object"); }
    }
    template <class T>
    Fields& require(const char* key, T& out)
    {
        if (!has(key)) { fail(std::string{"missing field `"} + key + "`"); }
        return optional(key, out);
    }
    template <class T>
    Fields& optional(const char* key, T& out)
    {
        if (has(key) && !take(object_.find(key).value(), out)) { fail(std::string{"wrong type or range of `"} + key + "`"); }
        return *this;
    }
    template <class F>
    Fields& each(const char* key, F element)
    {
        if (!has(key)) { return *this; }
        const auto& list = object_.find(key).value();
        if (!list.is_array())
        {
            fail(std::string{"wrong type of `"} + key + "`");
            return *this;
        }
        for (const auto& item : list)
        {
            Fields inner{item, what_};
            element(inner);
            if (inner.mistake_) { fail(*inner.mistake_); }
        }
        return *this;
    }
    bool ok() const { return !mistake_; }
    Error error() const { return Error{Errc::data_loss, std::string{what_} + ": " + mistake_.value_or("")}; }

  private:
    bool has(const char* key) const
    {
        return object_.is_object() && object_.contains(key) && !object_.find(key).value().is_null();
    }
    void fail(std::string text)
    {
        if (!mistake_) { mistake_ = std::move(text); }
    }
    static bool take(const ordered_json& value, std::string& out)
    {
        if (!value.is_string()) { return false; }
        out = *value.get_ptr<const std::string*>();
        return true;
    }
    static bool take(const ordered_json& value, std::optional<std::string>& out)
    {
        out.emplace();
        return take(value, *out);
    }
    static bool take(const ordered_json& value, bool& out)
    {
        if (!value.is_boolean()) { return false; }
        out = *value.get_ptr<const bool*>();
        return true;
    }
    template <std::unsigned_integral T>
    static bool take(const ordered_json& value, T& out)
    {
        if (!value.is_number_unsigned()) { return false; }
        const auto wide = *value.get_ptr<const ordered_json::number_unsigned_t*>();
        if (wide > std::numeric_limits<T>::max()) { return false; }
        out = static_cast<T>(wide);
        return true;
    }
    static bool take(const ordered_json& value, std::vector<std::string>& out)
    {
        if (!value.is_array()) { return false; }
        for (const auto& item : value)
        {
            out.emplace_back();
            if (!take(item, out.back())) { return false; }
        }
        return true;
    }
    const ordered_json& object_;
    const char* what_;
    std::optional<std::string> mistake_;
};

bool unspecified(const std::string& address) { return address == "0.0.0.0" || address == "::"; }
} // namespace

std::string to_string(const PortMap& map) { return map.protocol + " " + map.address + ":" + std::to_string(map.from); }

bool overlaps(const PortMap& a, const PortMap& b)
{
    return a.protocol == b.protocol && a.from == b.from &&
           (a.address == b.address || unspecified(a.address) || unspecified(b.address));
}

std::string encode(const Manifest& m)
{
    ordered_json out;
    out["id"] = m.id;
    out["name"] = m.name;
    out["app_id"] = m.app_id;
    out["vcpu"] = m.vcpu;
    out["memory"] = m.memory;
    out["disk_size"] = m.disk_size;
    out["image"] = m.image;
    out["port_map"] = ordered_json::array();
    for (const auto& port : m.port_map)
    {
        out["port_map"].push_back({{"address", port.address}, {"protocol", port.protocol}, {"from", port.from}, {"to", port.to}});
    }
    out["created_at_ms"] = m.created_at_ms;
    out["hugepages"] = m.hugepages;
    out["pin_numa"] = m.pin_numa;
    out["gpus"] = {{"attach_mode", "listed"}, {"gpus", ordered_json::array()}, {"bridges", ordered_json::array()}};
    out["kms_urls"] = m.kms_urls;
    out["gateway_urls"] = m.gateway_urls;
    out["no_tee"] = m.no_tee;
    if (m.simulated_tee) { out["simulated_tee"] = *m.simulated_tee; }
    out["swtpm"] = false;
    out["networks"] = ordered_json::array({ordered_json{{"mode", "user"}}});
    out["networking"] = ordered_json{{"mode", "user"}};
    out["volumes"] = ordered_json::array();
    if (m.cid != 0) { out["cid"] = m.cid; }
    return dump(out);
}

Result<Manifest> decode_manifest(std::string_view text)
{
    const auto document = ordered_json::parse(text, nullptr, false);
    if (document.is_discarded()) { return Error{Errc::data_loss, "vm-manifest.json: no JSON"}; }
    Manifest m;
    Fields fields{document, "vm-manifest.json"};
    fields.require("id", m.id).require("name", m.name).require("app_id", m.app_id).require("vcpu", m.vcpu);
    fields.require("memory", m.memory).require("disk_size", m.disk_size).require("image", m.image);
    fields.each("port_map",
                [&m](Fields& port)
                {
                    PortMap map;
                    port.require("address", map.address).require("protocol", map.protocol);
                    port.require("from", map.from).require("to", map.to);
                    m.port_map.push_back(std::move(map));
                });
    fields.require("created_at_ms", m.created_at_ms).optional("hugepages", m.hugepages).optional("pin_numa", m.pin_numa);
    fields.optional("kms_urls", m.kms_urls).optional("gateway_urls", m.gateway_urls).optional("no_tee", m.no_tee);
    fields.optional("simulated_tee", m.simulated_tee).optional("cid", m.cid);
    if (!fields.ok()) { return fields.error(); }
    if (!valid_vm_id(m.id)) { return Error{Errc::data_loss, "vm-manifest.json: invalid VM id"}; }
    return m;
}

std::string encode(const State& s)
{
    ordered_json out;
    out["started"] = s.started;
    out["boot_progress"] = s.boot_progress;
    out["boot_error"] = s.boot_error;
    out["shutdown_progress"] = s.shutdown_progress;
    out["stop_asked"] = s.stop_asked;
    out["started_at_ms"] = s.started_at_ms;
    out["exited_at_ms"] = s.exited_at_ms;
    out["exit_reason"] = s.exit_reason;
    out["host_api_port"] = s.host_api_port;
    out["host_api_token"] = s.host_api_token;
    out["accel"] = s.accel;
    out["ready"] = s.ready;
    out["events"] = ordered_json::array();
    for (const auto& event : s.events)
    {
        out["events"].push_back({{"event", event.event}, {"body", event.body}, {"timestamp", event.timestamp}});
    }
    return dump(out);
}

Result<State> decode_state(std::string_view text)
{
    const auto document = ordered_json::parse(text, nullptr, false);
    if (document.is_discarded()) { return Error{Errc::data_loss, "vm-state.json: no JSON"}; }
    State s;
    Fields fields{document, "vm-state.json"};
    fields.require("started", s.started).optional("boot_progress", s.boot_progress).optional("boot_error", s.boot_error);
    fields.optional("shutdown_progress", s.shutdown_progress).optional("stop_asked", s.stop_asked);
    fields.optional("started_at_ms", s.started_at_ms).optional("exited_at_ms", s.exited_at_ms);
    fields.optional("exit_reason", s.exit_reason).optional("host_api_port", s.host_api_port);
    fields.optional("host_api_token", s.host_api_token).optional("accel", s.accel).optional("ready", s.ready);
    fields.each("events",
                [&s](Fields& item)
                {
                    GuestEvent event;
                    item.require("event", event.event).require("body", event.body).require("timestamp", event.timestamp);
                    s.events.push_back(std::move(event));
                });
    if (!fields.ok()) { return fields.error(); }
    return s;
}

bool valid_vm_id(std::string_view id)
{
    return !id.empty() && id.size() <= 64 &&
           std::all_of(id.begin(), id.end(),
                       [](char c)
                       {
                           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                                  c == '-';
                       });
}

std::string make_uuid()
{
    auto bytes = crypto::random_fixed<16>();
    bytes[6] = static_cast<std::uint8_t>((bytes[6] & 0x0f) | 0x40);
    bytes[8] = static_cast<std::uint8_t>((bytes[8] & 0x3f) | 0x80);
    std::string out = crypto::to_hex(bytes);
    for (const std::size_t at : {8U, 13U, 18U, 23U}) { out.insert(at, "-"); }
    return out;
}

} // namespace dstack::vmm
