#pragma once
#include "shared/base/result.hpp"
#include "shared/compose/words.hpp"
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dstack::compose
{

/// "127.0.0.1:8080:80": listen on 8080 of the guest, hand over to 80 of the container. TCP only.
struct Port
{
    std::string host_ip{"0.0.0.0"};
    std::uint16_t published = 0; ///< in the guest
    std::uint16_t target = 0;    ///< in the container
    bool operator==(const Port&) const = default;
};

struct Mount
{
    enum class Kind
    {
        tmpfs,  ///< a private file system in memory
        volume, ///< a named volume, shared by the services that name it
    };
    Kind kind = Kind::tmpfs;
    std::string source{};  ///< the volume's name; empty for tmpfs
    std::string target{};  ///< absolute path in the container
    std::string options{}; ///< tmpfs mount options: "size=64m,mode=1777"
    bool read_only = false;
    bool operator==(const Mount&) const = default;
};

struct Restart
{
    enum class Policy
    {
        no,
        always,
        on_failure,
        unless_stopped,
    };
    Policy policy = Policy::no;
    unsigned max_attempts = 0; ///< on_failure only; 0 = no limit
    bool operator==(const Restart&) const = default;
};

struct Service
{
    std::string name{};
    std::string image{};                                  ///< full name: docker.io/library/busybox:latest
    std::optional<std::vector<std::string>> command{};    ///< absent: the image's
    std::optional<std::vector<std::string>> entrypoint{}; ///< absent: the image's
    std::vector<std::pair<std::string, std::string>> environment{};
    std::string working_dir{}; ///< empty: the image's
    std::string user{};        ///< empty: the image's
    std::string hostname{};    ///< empty: the service's name
    bool read_only = false;
    Restart restart{};
    std::vector<Port> ports{};
    std::vector<Mount> mounts{};
    std::vector<std::string> depends_on{};
};

struct ComposeApp
{
    std::vector<Service> services{};    ///< in start order: a service comes after all that it depends on
    std::vector<std::string> volumes{}; ///< named volumes, in memory: they end with the VM
};

constexpr std::size_t max_compose_bytes = 256 * 1024;
constexpr std::size_t max_services = 32;

/// Reads a docker compose file as the development guest runs it. Strict: a key that the guest would not honour is an
/// error that names the service, the key and the line; only keys that cannot change how the app runs (version, name,
/// x-*, labels, container_name, logging, expose, pull_policy) are passed over. `variables` feeds ${NAME}.
Result<ComposeApp> parse_compose(std::string_view yaml, const Variables& variables = {});

} // namespace dstack::compose
