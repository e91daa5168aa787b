#include "services/dstackup/settings.hpp"
#include "shared/config/config.hpp"
#include <array>

namespace dstack::up
{

std::string toml_quote(std::string_view text)
{
    constexpr std::string_view digits = "0123456789abcdef";
    std::string out = "\"";
    for (const char c : text)
    {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') { (out += '\\') += c; }
        else if (byte < 0x20 || byte == 0x7f) { ((out += "\\u00") += digits[byte >> 4]) += digits[byte & 15]; }
        else { out += c; }
    }
    return out += '"';
}

std::string to_toml(const Settings& settings)
{
    return "prefix = " + toml_quote(settings.prefix) + "\nprogram = " + toml_quote(settings.program) +
           (settings.leases.empty() ? "" : "\nleases = " + toml_quote(settings.leases)) +
           "\n\n[ports] # on 127.0.0.1\nauth = " + std::to_string(settings.auth_port) +
           "\nvmm = " + std::to_string(settings.vmm_port) + "\nkms = " + std::to_string(settings.kms_port) + "\n";
}

Result<Settings> parse_settings(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Settings out;
    auto top = document->section("");
    top.require("prefix", out.prefix).require("program", out.program).read("leases", out.leases);
    if (!out.prefix.empty() && out.prefix.front() != '/') { top.refuse("prefix", "must be an absolute path"); }
    auto ports = document->section("ports");
    ports.read("auth", out.auth_port, 1, 65535).read("vmm", out.vmm_port, 1, 65535).read("kms", out.kms_port, 1, 65535);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

} // namespace dstack::up
