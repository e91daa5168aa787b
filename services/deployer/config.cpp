#include "services/deployer/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::deployer
{

Result<Config> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Config out;
    document->section("bus").read("directory", out.bus_directory);
    document->section("deployer").read("state_dir", out.state_dir).read_ms("observe_ms", out.observe, 100, 600'000);
    auto vmm = document->section("vmm");
    vmm.read("url", out.vmm_url)
        .read("token_file", out.vmm_token_file)
        .read_ms("patience_ms", out.vmm_patience, 0, 60'000)
        .read("no_tee", out.vm.no_tee)
        .read("simulated_tee", out.vm.simulated_tee)
        .read("kms_urls", out.vm.kms_urls);
    const bool known = out.vmm_url.starts_with("http://") || out.vmm_url.starts_with("https://") || out.vmm_url.starts_with("unix:");
    if (!known) { vmm.refuse("url", "expected http://HOST:PORT or unix:/PATH/TO/SOCKET"); }
    while (out.vmm_url.ends_with('/')) { out.vmm_url.pop_back(); }
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

} // namespace dstack::deployer
