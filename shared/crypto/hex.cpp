#include "shared/crypto/hex.hpp"
#include <openssl/evp.h>

namespace dstack::crypto
{

namespace
{

int digit_value(char c)
{
    if (c >= '0' && c <= '9') { return c - '0'; }
    if (c >= 'a' && c <= 'f') { return c - 'a' + 10; }
    if (c >= 'A' && c <= 'F') { return c - 'A' + 10; }
    return -1;
}

Error invalid(std::string message) { return {Errc::invalid_argument, std::move(message), {}, {}}; }

std::string_view without_prefix(std::string_view text)
{
    return text.starts_with("0x") || text.starts_with("0X") ? text.substr(2) : text;
}

} // namespace

std::string to_hex(View bytes)
{
    constexpr std::string_view digits = "0123456789abcdef";
    std::string out;
    out.reserve(bytes.size() * 2);
    for (const auto byte : bytes)
    {
        out += digits[byte >> 4U];
        out += digits[byte & 15U];
    }
    return out;
}

Result<Bytes> from_hex(std::string_view text)
{
    const auto hex = without_prefix(text);
    if (hex.size() % 2 != 0)
    {
        return invalid("hex with an odd number of digits (" + std::to_string(hex.size()) + ")");
    }
    Bytes out;
    out.reserve(hex.size() / 2);
    for (std::size_t i = 0; i < hex.size(); i += 2)
    {
        const int high = digit_value(hex[i]);
        const int low = digit_value(hex[i + 1]);
        if (high < 0 || low < 0)
        {
            const auto position = i + (high < 0 ? 0 : 1) + (text.size() - hex.size());
            return invalid("not a hex digit at position " + std::to_string(position));
        }
        out.push_back(static_cast<std::uint8_t>(high * 16 + low));
    }
    return out;
}

Result<Bytes> from_hex(std::string_view text, std::size_t size)
{
    const auto digits = without_prefix(text).size();
    if (digits != size * 2)
    {
        return invalid("expected " + std::to_string(size) + " bytes (" + std::to_string(size * 2) +
                       " hex digits), got " + std::to_string(digits) + " digits");
    }
    return from_hex(text);
}

std::string to_base64(View bytes)
{
    std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0'); // EVP writes a terminator
    const int written =
        EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()), bytes.data(), static_cast<int>(bytes.size()));
    out.resize(static_cast<std::size_t>(written));
    return out;
}

Result<Bytes> from_base64(std::string_view text)
{
    if (text.size() % 4 != 0) { return invalid("base64 whose length is not a multiple of 4"); }
    if (text.empty()) { return Bytes{}; }
    const auto padding = text.ends_with("==") ? 2U : text.ends_with('=') ? 1U : 0U;
    for (const char c : text.substr(0, text.size() - padding))
    {
        const bool ok =
            (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' || c == '/';
        if (!ok) { return invalid("not a base64 character"); }
    }
    Bytes out(text.size() / 4 * 3);
    const int written =
        EVP_DecodeBlock(out.data(), reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
    if (written < 0) { return invalid("not base64"); }
    out.resize(out.size() - padding);
    if (to_base64(out) != text) { return invalid("base64 with stray bits after its last byte"); }
    return out;
}

} // namespace dstack::crypto
