#include "services/allocator/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::allocator
{

Result<Config> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Config out;
    config::Section section = document->section("allocator");
    section.require("state_dir", out.state_dir)
        .read("leases", out.leases)
        .read("cid_first", out.cid_first, 3, 0xffff'fffe)
        .read("cid_last", out.cid_last, 3, 0xffff'fffe)
        .read("port_first", out.port_first, 1, 65535)
        .read("port_last", out.port_last, 1, 65535)
        .read("vsock_first", out.vsock_first, 1, 0xffff'fffe)
        .read("vsock_last", out.vsock_last, 1, 0xffff'fffe)
        .read("privileged_ports", out.privileged_ports)
        .read_ms("sweep_ms", out.sweep, 10, 3'600'000)
        .read_ms("watch_ms", out.watch, 50, 3'600'000)
        .read_ms("leak_check_ms", out.leak_check, 50, 3'600'000);
    if (!out.leases.empty() && out.leases.front() != '/') { section.refuse("leases", "must be an absolute path"); }
    if (out.vsock_last < out.vsock_first) { section.refuse("vsock_last", "must not be below vsock_first"); }
    if (out.cid_last < out.cid_first) { section.refuse("cid_last", "must not be below cid_first"); }
    if (out.port_last < out.port_first) { section.refuse("port_last", "must not be below port_first"); }
    document->section("quota")
        .read("ports_per_app", out.ports_per_app, 1, 65535)
        .read("cids_per_app", out.cids_per_app, 1, 1'000'000)
        .read("leases_per_host", out.leases_per_host, 1, 10'000'000);
    document->section("bus").require("directory", out.bus_directory);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

} // namespace dstack::allocator
