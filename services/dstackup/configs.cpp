#include "services/dstackup/configs.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"

namespace dstack::up
{

namespace
{
constexpr std::string_view header = "# Written by dstackup dev up; once edited, this file is left alone. sha256:";

std::string digest_of(std::string_view text) { return crypto::to_hex(crypto::sha256(text)); }

std::string pair(std::string_view key, std::string_view value)
{
    return std::string{key} + " = " + toml_quote(value) + "\n";
}

std::string pair(std::string_view key, std::uint16_t value)
{
    return std::string{key} + " = " + std::to_string(value) + "\n";
}
} // namespace

std::vector<File> service_configs(const Settings& settings,
                                  const std::function<std::string(const Service&)>& program_of)
{
    const Layout at{settings.prefix};
    const std::string on_bus = "\n[bus]\n" + pair("directory", at.bus());
    std::vector<File> out;

    std::string programs = "\n[programs] # who a peer is: the executable that the kernel names for its pid\n";
    for (const auto& service : roster) { programs += pair(service.name, program_of(service)); }
    for (const auto& service : grandchildren) { programs += pair(service.name, program_of(service)); }
    out.push_back(
        {at.config("bus"), "[bus]\n" + pair("directory", at.bus()) + pair("state_dir", at.state("bus")) + programs});

    out.push_back({at.config("auth"), "[auth]\n" + pair("port", settings.auth_port) +
                                          pair("policy_file", at.etc() + "/auth-allowlist.json") +
                                          "create_policy = true\n" + pair("ledger_dir", at.state("auth")) + on_bus});
    out.push_back({at.config("allocator"), "[allocator]\n" + pair("state_dir", at.state("allocator")) + on_bus});
    return out;
}

std::string managed(const std::string& text) { return std::string{header} + digest_of(text) + "\n" + text; }

bool is_unedited(std::string_view file)
{
    if (!file.starts_with(header)) { return false; }
    const auto end = file.find('\n');
    if (end == std::string_view::npos) { return false; }
    return file.substr(header.size(), end - header.size()) == digest_of(file.substr(end + 1));
}

} // namespace dstack::up
