#pragma once
#include "services/dstackup/print.hpp"
#include "services/dstackup/settings.hpp"
#include "services/dstackup/status.hpp"
#include <optional>

namespace dstack::up
{

/// What `dev up` was asked for; a port that is not given stays as it was, 0 takes a free one.
struct DevUp
{
    std::optional<std::uint16_t> auth_port{};
    std::optional<std::uint16_t> vmm_port{};
    std::optional<std::uint16_t> kms_port{};
};

struct DevDown
{
    bool purge = false;
};

// Each verb gives the exit code and has said everything there is to say.
int dev_up(const Global& global, const DevUp& wish);
int dev_down(const Global& global, const DevDown& wish);
int dev_status(const Global& global);
/// The supervisor itself; started by `dev up`.
int dev_supervise(const Global& global);

/// The supervisor that runs for this prefix, if one does.
std::optional<process::Identity> running_supervisor(const Layout& layout);
Result<MeshStatus> read_status(const Layout& layout);
Result<Settings> read_settings(const Layout& layout);

} // namespace dstack::up
