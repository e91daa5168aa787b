#include "services/dstackup/guest_images.hpp"
#include "bus/client/client.hpp"
#include "bus/schema/auth.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <dirent.h>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

namespace dstack::up
{

namespace
{
constexpr std::size_t max_policy = 64 * 1024 * 1024;
constexpr milliseconds bus_deadline{5'000};

Task<Result<Done>> allow(bus::Client& client, std::string digest)
{
    schema::AuthAllowImage command;
    command.os_image_hash = std::move(digest);
    command.reason = "guest image of the development prefix";
    bus::CallOptions options; // named: g++ 12 destroys a default argument of an awaited call twice
    auto reply = co_await client.call(command, options);
    if (!reply) { co_return std::move(reply).error(); }
    co_return Done{};
}

Task<> allow_all(Loop& loop, std::string directory, std::vector<std::string> digests, std::optional<Error>& failed)
{
    bus::Client client{loop, bus::ClientConfig{std::move(directory), {}}};
    auto connected = co_await client.connect(bus_deadline);
    if (!connected)
    {
        failed = connected.error();
        co_return;
    }
    for (const auto& digest : digests)
    {
        auto allowed = co_await allow(client, digest);
        if (!allowed) { failed = allowed.error(); }
    }
    co_await client.disconnect(bus_deadline);
}
} // namespace

std::vector<std::string> image_digests(const Layout& layout)
{
    std::vector<std::string> out;
    const auto close_dir = [](DIR* dir) { closedir(dir); };
    const std::unique_ptr<DIR, decltype(close_dir)> dir{opendir(layout.images().c_str()), close_dir};
    while (const dirent* entry = dir ? readdir(dir.get()) : nullptr)
    {
        const auto text = state::read_file(layout.images() + "/" + entry->d_name + "/digest.txt", 4096);
        if (!text || text->size() < 64) { continue; }
        auto digest = text->substr(0, 64);
        if (digest.find_first_not_of("0123456789abcdef") == std::string::npos) { out.push_back(std::move(digest)); }
    }
    std::sort(out.begin(), out.end());
    return out;
}

Result<Done> create_policy(const Layout& layout, const std::vector<std::string>& digests)
{
    const auto there = state::read_file(layout.policy(), max_policy);
    if (there || there.error().code != Errc::not_found)
    {
        return Done{};
    } // damaged or not: it is the auth process' to judge
    const nlohmann::ordered_json policy{{"osImages", digests}, {"apps", nlohmann::json::object()}};
    return state::write_file_atomic(layout.policy(), policy.dump(2) + "\n", 0644);
}

Result<Done> allow_new_images(const Layout& layout, const std::vector<std::string>& digests)
{
    const auto policy = state::read_file(layout.policy(), max_policy);
    std::vector<std::string> missing;
    for (const auto& digest : digests)
    {
        if (!policy || policy->find(digest) == std::string::npos) { missing.push_back(digest); }
    }
    if (missing.empty()) { return Done{}; }
    std::optional<Error> failed;
    {
        Loop loop;
        loop.run(allow_all(loop, layout.bus(), missing, failed));
    }
    if (failed) { return std::move(*failed).within("allow the guest image"); }
    return Done{};
}

} // namespace dstack::up
