#include "services/kms-local/key_store.hpp"
#include "shared/state/files.hpp"
#include <cerrno>
#include <cstdio>
#include <sys/stat.h>

namespace dstack::kms
{

namespace
{

constexpr std::size_t max_file = 64 * 1024;
constexpr std::string_view restore_hint =
    "restore the state directory from a backup; only if no app ever got keys from this KMS, move it away to start anew";

bool exists(const std::string& path)
{
    struct stat info
    {
    };
    return ::lstat(path.c_str(), &info) == 0;
}

Error lost(std::string message) { return {Errc::data_loss, std::move(message), std::string{restore_hint}, {}}; }

Result<RootKeys> load(const std::string& dir)
{
    KeyFiles files;
    for (const auto& name : key_file_names())
    {
        auto content = state::read_file(dir + "/" + name, max_file);
        if (content) { files[name] = std::move(*content); }
        else if (content.error().code != Errc::not_found) { return std::move(content).error(); }
    }
    auto keys = decode(files);
    if (!keys) { return lost("root keys in " + dir + ": " + keys.error().message); }
    return keys;
}

/// Nothing is visible under the final name before everything is on the disk.
Result<RootKeys> bootstrap(const std::string& state_dir, const std::string& dir)
{
    auto keys = generate_root_keys();
    if (!keys) { return keys; }
    const auto fresh = dir + ".new";
    if (auto done = state::remove_tree(fresh); !done) { return std::move(done).error(); }
    if (auto done = state::make_dirs(fresh, 0700); !done) { return std::move(done).error(); }
    for (const auto& [name, content] : encode(*keys))
    {
        if (auto done = state::write_file_atomic(fresh + "/" + name, content, 0600); !done)
        {
            return std::move(done).error();
        }
    }
    if (std::rename(fresh.c_str(), dir.c_str()) != 0) { return errno_error("rename " + fresh, errno); }
    if (auto done = state::fsync_dir(state_dir); !done) { return std::move(done).error(); }
    return keys;
}

Result<Done> check_recorded(const std::string& path, const Identity& identity)
{
    const auto text = state::read_file(path, max_file);
    if (!text) { return text.error(); }
    const auto recorded = decode_identity(*text);
    if (!recorded) { return lost(path + ": " + recorded.error().message); }
    if (*recorded != identity)
    {
        return lost("root keys are not the recorded ones: " + path + " names CA " + recorded->ca_fingerprint +
                    ", the keys are those of CA " + identity.ca_fingerprint);
    }
    return Done{};
}

} // namespace

Result<Loaded> open_key_store(const std::string& state_dir, std::string_view expected_ca)
{
    if (auto done = state::make_dirs(state_dir, 0700); !done) { return std::move(done).error(); }
    auto lock = state::FileLock::acquire(state_dir + "/lock", std::chrono::milliseconds{2000});
    if (!lock) { return std::move(lock).error().within("another dstack-kms-local uses " + state_dir); }
    const auto dir = state_dir + "/keys";
    const auto record = state_dir + "/identity.json";
    const Found found{exists(dir), exists(record)};
    const auto step = decide(found);
    if (step == Step::refuse)
    {
        return lost("an identity was recorded in " + record + ", but its root keys in " + dir + " are gone");
    }
    if (step == Step::bootstrap && !expected_ca.empty())
    {
        return lost("the KMS with CA " + std::string{expected_ca} + " was pinned, but there are no root keys in " +
                    dir);
    }
    auto keys = step == Step::bootstrap ? bootstrap(state_dir, dir) : load(dir);
    if (!keys) { return std::move(keys).error(); }
    const auto identity = identity_of(*keys);
    if (!identity) { return identity.error(); }
    if (!expected_ca.empty() && identity->ca_fingerprint != expected_ca)
    {
        return lost("the root keys in " + dir + " are those of CA " + identity->ca_fingerprint + ", pinned is CA " +
                    std::string{expected_ca});
    }
    auto recorded =
        found.identity ? check_recorded(record, *identity) : state::write_file_atomic(record, encode(*identity), 0644);
    if (!recorded) { return std::move(recorded).error(); }
    return Loaded{std::move(*keys), *identity, step == Step::bootstrap};
}

} // namespace dstack::kms
