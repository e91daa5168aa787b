#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "tests/catch.hpp"

using namespace dstack::crypto;

TEST_CASE("SHA-2 gives the published digests")
{
    // FIPS 180-4 examples
    CHECK(to_hex(sha256("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(to_hex(sha256("")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(to_hex(sha384("abc")) == "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed"
                                   "8086072ba1e7cc2358baeca134c825a7");
    CHECK(to_hex(sha512("abc")) == "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
                                   "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f");
}

TEST_CASE("Keccak-256 is Ethereum's, not SHA3-256")
{
    CHECK(to_hex(keccak256("")) == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470");
    CHECK(to_hex(keccak256("abc")) == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45");
    CHECK(to_hex(keccak256("The quick brown fox jumps over the lazy dog")) ==
          "4d741b6f1eb29cb2a9b9911c82f56fa8d73b04959d3d9d222895df6c0b28aa15");
    // The first four bytes are the best known selector of the Solidity ABI.
    CHECK(to_hex(keccak256("transfer(address,uint256)")).substr(0, 8) == "a9059cbb");
}

TEST_CASE("Keccak-256 at and around its block of 136 bytes")
{
    // One block of input must be permuted before the padding goes into a block of its own.
    const auto digest = [](std::size_t n) { return to_hex(keccak256(std::string(n, 'a'))); };
    CHECK(digest(135) == "34367dc248bbd832f4e3e69dfaac2f92638bd0bbd18f2912ba4ef454919cf446");
    CHECK(digest(136) == "a6c4d403279fe3e0af03729caada8374b5ca54d8065329a3ebcaeb4b60aa386e");
    CHECK(digest(137) == "d869f639c7046b4929fc92a4d988a8b22c55fbadb802c0c66ebcd484f1915f39");
}

TEST_CASE("SHA-256 in pieces equals SHA-256 at once")
{
    const std::string data(100'000, 'x');
    Sha256 hash;
    for (std::size_t at = 0; at < data.size(); at += 777) { hash.update(view(std::string_view{data}.substr(at, 777))); }
    CHECK(hash.finish() == sha256(data));
}

TEST_CASE("HMAC-SHA-256 gives the digest of RFC 4231 case 2")
{
    CHECK(to_hex(hmac_sha256(view("Jefe"), view("what do ya want for nothing?"))) ==
          "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}
