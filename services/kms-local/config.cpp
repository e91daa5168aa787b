#include "services/kms-local/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::kms
{

Result<Config> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Config out;
    auto section = document->section("kms");
    section.read("listen", out.listen)
        .read("port", out.port, 0, 65535)
        .require("state_dir", out.state_dir)
        .read("auth_url", out.auth_url)
        .read_ms("auth_timeout_ms", out.auth_timeout, 10, 50'000)
        .require("tee_host_key_file", out.tee_host_key_file)
        .read("dns_names", out.dns_names)
        .read("ip_addresses", out.ip_addresses)
        .read_ms("request_timeout_ms", out.request_timeout, 100, 60'000);
    if (!out.auth_url.starts_with("http://") && !out.auth_url.starts_with("https://"))
    {
        section.refuse("auth_url", "must begin with http:// or https://");
    }
    if (out.dns_names.empty()) { section.refuse("dns_names", "must name at least one host"); }
    document->section("bus").read("directory", out.bus_directory);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

} // namespace dstack::kms
