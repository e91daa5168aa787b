#include "bus/broker/token_files.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/state/files.hpp"
#include <sys/stat.h>

namespace dstack::bus
{

namespace
{
constexpr std::size_t max_tokens_file = 4 * 1024 * 1024;
std::string key_path(const std::string& directory) { return directory + "/curve.key"; }
std::string tokens_path(const std::string& directory) { return directory + "/tokens.json"; }
} // namespace

Result<crypto::Bytes32> load_server_key(const std::string& directory)
{
    const std::string path = key_path(directory);
    const auto text = state::read_file(path, 4096);
    if (!text && text.error().code != Errc::not_found) { return text.error(); }
    if (!text)
    {
        const auto key = crypto::random_fixed<32>();
        auto written = state::write_file_atomic(path, crypto::to_hex(key) + "\n", 0600);
        if (!written) { return std::move(written).error(); }
        return key;
    }
    struct stat facts = {};
    if (::stat(path.c_str(), &facts) != 0 || (facts.st_mode & 077) != 0)
    {
        return Error{Errc::failed_precondition, path + ": others than its owner may read the broker's key",
                     "chmod 600 " + path + "; if somebody did read it: remove it, restart, and make new tokens", {}};
    }
    auto key = crypto::from_hex_fixed<32>(std::string_view{*text}.substr(0, text->find('\n')));
    if (!key)
    {
        return Error{Errc::data_loss, path + ": damaged: " + key.error().message,
                     "put back the copy, or remove it and make new tokens: those that are out there are for the lost key", {}};
    }
    return *key;
}

Result<Tokens> load_tokens(const std::string& directory)
{
    const auto text = state::read_file(tokens_path(directory), max_tokens_file);
    if (!text && text.error().code == Errc::not_found) { return Tokens{}; }
    if (!text) { return text.error(); }
    auto tokens = Tokens::parse(*text);
    if (!tokens) { return std::move(tokens).error().within(tokens_path(directory)); }
    return tokens;
}

Result<Done> save_tokens(const std::string& directory, const std::string& text)
{
    return state::write_file_atomic(tokens_path(directory), text, 0600);
}

} // namespace dstack::bus
