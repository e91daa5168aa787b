#pragma once
#include "services/guest-agent/image_store.hpp"
#include "shared/compose/compose.hpp"
#include <cstdint>

namespace dstack::guest
{

struct User
{
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::string home{"/"};
    std::vector<std::uint32_t> groups{}; ///< supplementary
};

/// "name", "uid", "name:group", "uid:gid" against the image's /etc/passwd and /etc/group; empty is root.
Result<User> resolve_user(std::string_view spec, std::string_view passwd, std::string_view group);

/// The command line: an entrypoint of the compose file also drops the image's command, as docker does.
std::vector<std::string> command_line(const compose::Service& service, const ImageConfig& image);

/// Paths in the guest that a container is made of.
struct ContainerPaths
{
    std::string rootfs{};
    std::string hosts{};
    std::string resolv_conf{};
    std::string hostname{};
    std::string volumes{}; ///< folder of the named volumes
};

/// The OCI runtime configuration (config.json): own pid, mount, ipc, uts and cgroup namespaces, the guest's network,
/// no new privileges, a short list of capabilities (none for a user other than root).
Result<std::string> oci_spec(const compose::Service& service, const ImageConfig& image, const User& user,
                             const ContainerPaths& paths);

} // namespace dstack::guest
