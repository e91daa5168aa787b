#include "services/auth/chain/abi.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/chain_vectors.hpp"

using namespace dstack::auth;
using namespace dstack::auth::chain;
using dstack::crypto::Bytes;

namespace
{
Bytes bytes(std::string_view hex)
{
    auto out = dstack::crypto::from_hex(hex);
    REQUIRE(out);
    return *out;
}

BootInfo boot_of(std::string_view body)
{
    BootInfoReader reader;
    auto boot = reader.read(body);
    REQUIRE(boot);
    return *boot;
}
} // namespace

TEST_CASE("questions are encoded as another encoder does it")
{
    for (const auto& row : chain_vectors::questions)
    {
        INFO(row.kind << ", " << row.about);
        auto data = encode_question(row.kind == "app" ? Kind::app : Kind::kms, boot_of(row.boot));
        REQUIRE(data);
        CHECK(dstack::crypto::to_hex(*data) == row.calldata);
    }
}

TEST_CASE("selectors are the first bytes of the signatures' hashes")
{
    const std::string tuple = "((address,bytes32,address,bytes32,bytes32,bytes32,bytes32,string,string[]))";
    const std::pair<std::string, Selector> rows[] = {{"isAppAllowed" + tuple, is_app_allowed},
                                                     {"isKmsAllowed" + tuple, is_kms_allowed},
                                                     {"gatewayAppId()", gateway_app_id},
                                                     {"appImplementation()", app_implementation}};
    for (const auto& [signature, selector] : rows)
    {
        const auto hash = dstack::crypto::keccak256(signature);
        CHECK(std::equal(selector.begin(), selector.end(), hash.begin()));
    }
    CHECK(dstack::crypto::to_hex(is_app_allowed) == chain_vectors::selector_of_isAppAllowed);
    CHECK(dstack::crypto::to_hex(is_kms_allowed) == chain_vectors::selector_of_isKmsAllowed);
    CHECK(dstack::crypto::to_hex(gateway_app_id) == chain_vectors::selector_of_gatewayAppId);
    CHECK(dstack::crypto::to_hex(app_implementation) == chain_vectors::selector_of_appImplementation);
}

TEST_CASE("a value that does not fit is refused, never cut or padded")
{
    BootInfo boot = boot_of(chain_vectors::questions[0].boot);
    boot.device_id = std::string(128, 'a'); // SEV-SNP
    auto refused = encode_question(Kind::app, boot);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message.starts_with("deviceId: "));
    boot = boot_of(chain_vectors::questions[0].boot);
    boot.compose_hash.pop_back();
    CHECK_FALSE(encode_question(Kind::app, boot));
    boot.compose_hash = std::string(62, 'a');
    CHECK_FALSE(encode_question(Kind::app, boot));
}

TEST_CASE("verdicts are decoded as another encoder wrote them")
{
    for (const auto& row : chain_vectors::rulings)
    {
        auto ruling = decode_ruling(bytes(row.data));
        REQUIRE(ruling);
        CHECK(ruling->allowed == row.allowed);
        CHECK(ruling->reason == row.reason);
    }
    for (const auto& row : chain_vectors::texts)
    {
        auto text = decode_string(bytes(row.data));
        REQUIRE(text);
        CHECK(*text == row.text);
    }
    auto address = decode_address(bytes(chain_vectors::address.data));
    REQUIRE(address);
    CHECK(*address == chain_vectors::address.text);
    for (const auto& row : chain_vectors::reverts) { CHECK(revert_reason(bytes(row.data)) == row.text); }
    CHECK(revert_reason({}).empty());
    CHECK(revert_reason(bytes("08c379a0")).empty());
    CHECK(revert_reason(bytes("08c379")).empty());
    CHECK(revert_reason(bytes("deadbeef")).empty());
}

TEST_CASE("every shortened and every flipped verdict is refused or another one, and never read outside")
{
    for (const auto& row : chain_vectors::rulings)
    {
        const Bytes whole = bytes(row.data);
        const std::size_t text_end = 96 + row.reason.size(); // padding may be missing
        for (std::size_t size = 0; size < whole.size(); ++size)
        {
            const Bytes part{whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)}; // its own buffer: for the sanitizer
            CHECK(static_cast<bool>(decode_ruling(part)) == (size >= text_end));
        }
        for (std::size_t bit = 0; bit < 32 * 8; ++bit) // the boolean's word: anything but 0 and 1
        {
            Bytes wrong = whole;
            wrong[bit / 8] = static_cast<std::uint8_t>(wrong[bit / 8] ^ (1U << bit % 8));
            auto read = decode_ruling(wrong);
            if (bit != 31 * 8) { CHECK_FALSE(read); }
            else { CHECK((read && read->allowed != row.allowed)); }
        }
        for (std::size_t byte = 32; byte < 96; ++byte) // offset and length
        {
            Bytes wrong = whole;
            wrong[byte] = 0xff;
            CHECK_FALSE(decode_ruling(wrong));
        }
    }
    CHECK_FALSE(decode_address(bytes(std::string(22, '0') + "01" + std::string(40, 'a'))));
    CHECK_FALSE(decode_address(bytes(std::string(62, '0'))));
}
