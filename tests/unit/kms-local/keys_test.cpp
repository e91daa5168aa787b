#include "services/kms-local/keys.hpp"
#include "shared/crypto/x509.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::kms;

namespace
{
RootKeys fresh()
{
    auto keys = generate_root_keys();
    REQUIRE(keys);
    return std::move(*keys);
}
} // namespace

TEST_CASE("root keys go through their files unchanged")
{
    const auto keys = fresh();
    const auto again = decode(encode(keys));
    REQUIRE(again);
    const auto before = identity_of(keys);
    const auto after = identity_of(*again);
    REQUIRE(before);
    REQUIRE(after);
    CHECK(*before == *after);
    CHECK(again->ca_key.scalar() == keys.ca_key.scalar());
    CHECK(again->k256_key == keys.k256_key);
    CHECK(encode(keys).size() == key_file_names().size());
    CHECK(*identity_of(fresh()) != *before);
}

TEST_CASE("the CA is named and limited as upstream's")
{
    const auto keys = fresh();
    const auto ca = crypto::parse_cert_pem(keys.ca_cert_pem);
    const auto temp = crypto::parse_cert_pem(keys.temp_ca_cert_pem);
    REQUIRE(ca);
    REQUIRE(temp);
    CHECK(ca->common_name == "Dstack KMS CA");
    CHECK(temp->common_name == "Dstack Client Temp CA");
    CHECK(ca->is_ca);
    CHECK(temp->is_ca);
}

TEST_CASE("an incomplete or mixed set of key files is refused")
{
    const auto good = encode(fresh());
    const auto other = encode(fresh());
    for (const auto& name : key_file_names())
    {
        INFO(name);
        auto missing = good;
        missing.erase(name);
        const auto without = decode(missing);
        REQUIRE_FALSE(without);
        CHECK(without.error().message == name + " is missing");

        auto cut = good;
        cut[name].resize(cut[name].size() / 2);
        CHECK_FALSE(decode(cut));

        if (name == "root-k256.key") { continue; } // any 32 bytes are a key: the recorded identity finds a wrong one
        auto mixed = good;
        mixed[name] = other.at(name);
        CHECK_FALSE(decode(mixed));
    }
    auto zero = good;
    zero["root-k256.key"] = std::string(32, '\0');
    CHECK_FALSE(decode(zero));
}

TEST_CASE("a recorded identity reads back, and nothing else does")
{
    const auto identity = identity_of(fresh());
    REQUIRE(identity);
    const auto again = decode_identity(encode(*identity));
    REQUIRE(again);
    CHECK(*again == *identity);
    for (const auto* bad :
         {"", "{}", "[]", R"({"ca_fingerprint":"00","k256_pubkey":"00"})", R"({"ca_fingerprint":1,"k256_pubkey":2})"})
    {
        CHECK_FALSE(decode_identity(bad));
    }
}

TEST_CASE("keys are made once, and never again where an identity was recorded")
{
    struct Case
    {
        Found found;
        Step step;
    };
    const Case cases[] = {
        {{false, false}, Step::bootstrap},
        {{true, true}, Step::load},
        {{true, false}, Step::load}, // ended between the two writes: the keys are complete, only the record is missing
        {{false, true}, Step::refuse},
    };
    for (const auto& c : cases)
    {
        INFO(c.found.keys_dir << c.found.identity);
        CHECK(decide(c.found) == c.step);
    }
}
