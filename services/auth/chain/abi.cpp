#include "services/auth/chain/abi.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>

namespace dstack::auth::chain
{

namespace
{

using crypto::Bytes;
using crypto::View;

constexpr std::size_t word = 32;
constexpr Selector error_text{0x08, 0xc3, 0x79, 0xa0}; // Error(string)
constexpr Selector panic_code{0x4e, 0x48, 0x7b, 0x71}; // Panic(uint256)

void put_number(Bytes& out, std::uint64_t value)
{
    out.insert(out.end(), word - 8, 0);
    for (int shift = 56; shift >= 0; shift -= 8) { out.push_back(static_cast<std::uint8_t>(value >> shift)); }
}

void put_string(Bytes& out, std::string_view text)
{
    put_number(out, text.size());
    crypto::append(out, crypto::view(text));
    out.insert(out.end(), (word - text.size() % word) % word, 0);
}

/// `hex` has been checked by BootInfoReader; it is checked again, because a value that is padded by mistake would be
/// another value.
Result<Done> put_fixed(Bytes& out, std::string_view name, std::string_view hex, std::size_t size)
{
    Bytes bytes(size, 0);
    if (!hex.empty())
    {
        auto given = crypto::from_hex(hex, size);
        if (!given) { return std::move(given).error().within(name); }
        bytes = std::move(*given);
    }
    out.insert(out.end(), word - size, 0);
    crypto::append(out, bytes);
    return Done{};
}

Error broken(std::string_view why)
{
    return Error{Errc::invalid_argument, "not what the contract's interface says: " + std::string{why}, {}, {}};
}

/// The word at `at` as a number; false when it is outside or does not fit.
bool number_at(View data, std::size_t at, std::uint64_t& out)
{
    if (data.size() < word || at > data.size() - word) { return false; }
    out = 0;
    for (std::size_t i = 0; i < word; ++i)
    {
        if (i < word - 8 && data[at + i] != 0) { return false; }
        out = out << 8 | data[at + i];
    }
    return true;
}

/// The string whose offset stands at `head`.
Result<std::string> string_at(View data, std::size_t head)
{
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    if (!number_at(data, head, offset) || offset > data.size() || !number_at(data, static_cast<std::size_t>(offset), length))
    {
        return broken("a string lies outside the answer");
    }
    const std::size_t start = static_cast<std::size_t>(offset) + word; // inside, as its length was
    if (length > data.size() - start) { return broken("a string is longer than the answer"); }
    return crypto::text(data.subspan(start, static_cast<std::size_t>(length)));
}

} // namespace

Result<Bytes> encode_question(Kind kind, const BootInfo& boot)
{
    struct Field
    {
        std::string_view name;
        const std::string& hex;
        std::size_t size;
    };
    const std::array<Field, 7> fields{{{"appId", boot.app_id, 20},
                                       {"composeHash", boot.compose_hash, 32},
                                       {"instanceId", boot.instance_id, 20},
                                       {"deviceId", boot.device_id, 32},
                                       {"mrAggregated", boot.mr_aggregated, 32},
                                       {"mrSystem", boot.mr_system, 32},
                                       {"osImageHash", boot.os_image_hash, 32}}};
    const Selector& selector = kind == Kind::app ? is_app_allowed : is_kms_allowed;
    Bytes out{selector.begin(), selector.end()};
    put_number(out, word); // the only argument: a tuple of variable length
    for (const Field& field : fields)
    {
        auto put = put_fixed(out, field.name, field.hex, field.size);
        if (!put) { return std::move(put).error(); }
    }
    Bytes status;
    put_string(status, boot.tcb_status);
    const std::size_t head = (fields.size() + 2) * word;
    put_number(out, head);
    put_number(out, head + status.size());
    crypto::append(out, status);
    put_number(out, boot.advisory_ids.size());
    std::size_t offset = boot.advisory_ids.size() * word;
    Bytes texts;
    for (const std::string& id : boot.advisory_ids)
    {
        put_number(out, offset + texts.size());
        put_string(texts, id);
    }
    crypto::append(out, texts);
    return out;
}

Result<Ruling> decode_ruling(View data)
{
    std::uint64_t allowed = 0;
    if (!number_at(data, 0, allowed) || allowed > 1) { return broken("no boolean where the verdict should be"); }
    auto reason = string_at(data, word);
    if (!reason) { return std::move(reason).error(); }
    return Ruling{allowed == 1, std::move(*reason)};
}

Result<std::string> decode_string(View data) { return string_at(data, 0); }

Result<std::string> decode_address(View data)
{
    constexpr std::size_t before = word - 20;
    if (data.size() < word) { return broken("an address is too short"); }
    if (std::any_of(data.begin(), data.begin() + before, [](std::uint8_t byte) { return byte != 0; }))
    {
        return broken("an address is too long");
    }
    return crypto::to_hex(data.subspan(before, 20));
}

std::string revert_reason(View data)
{
    if (data.size() < 4) { return {}; }
    const View rest = data.subspan(4);
    if (std::equal(error_text.begin(), error_text.end(), data.begin()))
    {
        auto text = string_at(rest, 0);
        return text ? std::move(*text) : std::string{};
    }
    std::uint64_t code = 0;
    if (std::equal(panic_code.begin(), panic_code.end(), data.begin()) && number_at(rest, 0, code))
    {
        return "panic " + std::to_string(code);
    }
    return {};
}

} // namespace dstack::auth::chain
