#include "shared/ledger/chain.hpp"
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <openssl/evp.h>

namespace dstack::ledger
{

namespace
{

constexpr std::string_view head = "{\"seq\":";
constexpr std::string_view tail_key = ",\"prev\":\"";
constexpr std::size_t tail_size = tail_key.size() + 64 + 2;

Error broken(std::string why) { return Error{Errc::data_loss, std::move(why), {}, {}}; }

/// The algorithm is looked up once: EVP_Digest does that for each text, which costs as much as hashing 300 bytes.
struct Digest
{
    const EVP_MD* algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
    EVP_MD_CTX* context = EVP_MD_CTX_new();
    Digest() = default;
    Digest(const Digest&) = delete;
    Digest& operator=(const Digest&) = delete;
    ~Digest()
    {
        EVP_MD_CTX_free(context);
        EVP_MD_free(const_cast<EVP_MD*>(algorithm));
    }
};

} // namespace

HashText hash_line(std::string_view line)
{
    static thread_local Digest digest;
    std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
    unsigned int size = 0;
    // Fails only when memory runs out.
    if (EVP_DigestInit_ex(digest.context, digest.algorithm, nullptr) != 1 ||
        EVP_DigestUpdate(digest.context, line.data(), line.size()) != 1 ||
        EVP_DigestFinal_ex(digest.context, out.data(), &size) != 1 || size != 32)
    {
        std::abort();
    }
    static constexpr std::string_view digits = "0123456789abcdef";
    HashText text{};
    for (std::size_t i = 0; i < 32; ++i)
    {
        text[2 * i] = digits[out[i] >> 4];
        text[2 * i + 1] = digits[out[i] & 15];
    }
    return text;
}

Result<Link> read_link(std::string_view line)
{
    if (!line.starts_with(head)) { return broken("it does not begin with its number"); }
    Link out;
    const char* const end = line.data() + line.size();
    const auto [stop, failed] = std::from_chars(line.data() + head.size(), end, out.sequence);
    if (failed != std::errc{} || stop == end || *stop != ',' || out.sequence == 0) { return broken("it has no number"); }
    const std::string_view last = line.size() < tail_size ? "" : line.substr(line.size() - tail_size);
    if (!last.starts_with(tail_key) || !last.ends_with("\"}"))
    {
        return broken("it does not end with the hash of the record before");
    }
    out.previous = last.substr(tail_key.size(), 64);
    return out;
}

Result<Done> Chain::next(std::string_view line)
{
    auto link = read_link(line);
    if (!link)
    {
        return std::move(link).error().within("where record " + std::to_string(sequence_ + 1) + " should be is none");
    }
    if (link->sequence != sequence_ + 1)
    {
        return broken("record " + std::to_string(sequence_ + 1) + " is missing: " + std::to_string(link->sequence) +
                      " is in its place");
    }
    if (link->previous != hash_)
    {
        return broken("record " + std::to_string(link->sequence) +
                      " does not continue the chain: the record before was changed, or this one");
    }
    sequence_ = link->sequence;
    hash_ = view(hash_line(line));
    return Done{};
}

Result<Done> Chain::resume(std::string_view line)
{
    auto link = read_link(line);
    if (!link) { return std::move(link).error(); }
    sequence_ = link->sequence;
    hash_ = view(hash_line(line));
    return Done{};
}

} // namespace dstack::ledger
