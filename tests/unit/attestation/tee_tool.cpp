// The simulated TEE on the command line, for the integration tests: what vmm-local and the guest agent do with the library.
//   tee_tool host-key SEED_HEX                     the host's public key
//   tee_tool config SEED_HEX APP COMPOSE INSTANCE IMAGE VM_ID   a simulator config
//   tee_tool identity CONFIG CA_CRT CA_KEY OUT_CRT OUT_KEY      an RA-TLS client certificate and its key
//   tee_tool fingerprint CERT                      SHA-256 of a PEM certificate
#include "shared/attestation/simulated.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/x509.hpp"
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

using namespace dstack;

namespace
{

std::string slurp(const std::string& path)
{
    std::ifstream file{path, std::ios::binary};
    return {std::istreambuf_iterator<char>{file}, {}};
}

int fail(const Error& error)
{
    std::fprintf(stderr, "tee_tool: %s\n", error.message.c_str());
    return 1;
}

int print(const std::string& line)
{
    std::puts(line.c_str());
    return 0;
}

int identity(const std::vector<std::string>& args)
{
    const auto made = attestation::make_ratls_identity(slurp(args[1]), slurp(args[2]), slurp(args[3]));
    if (!made) { return fail(made.error()); }
    std::ofstream{args[4]} << made->cert_pem;
    std::ofstream{args[5]} << made->key_pem;
    return 0;
}

int simulator_config(const std::vector<std::string>& args)
{
    const auto seed = crypto::from_hex_fixed<32>(args[1]);
    if (!seed) { return fail(seed.error()); }
    attestation::Claims claims;
    claims.app_id = args[2];
    claims.compose_hash = args[3];
    claims.instance_id = args[4];
    claims.os_image_hash = args[5];
    claims.vm_id = args[6];
    claims.vcpu = 1;
    claims.memory_mib = 512;
    claims.issued_at = 1'790'000'000;
    const auto text = attestation::make_simulator_config(*seed, claims);
    return text ? print(*text) : fail(text.error());
}

} // namespace

int main(int argc, char** argv)
{
    const std::vector<std::string> args(argv + 1, argv + argc);
    const auto is = [&args](std::string_view command, std::size_t size) { return args.size() == size && args[0] == command; };
    if (is("host-key", 2))
    {
        const auto seed = crypto::from_hex_fixed<32>(args[1]);
        return seed ? print(crypto::to_hex(attestation::host_public_key(*seed))) : fail(seed.error());
    }
    if (is("config", 7)) { return simulator_config(args); }
    if (is("identity", 6)) { return identity(args); }
    if (is("fingerprint", 2))
    {
        const auto cert = crypto::parse_cert_pem(slurp(args[1]));
        return cert ? print(crypto::to_hex(cert->fingerprint)) : fail(cert.error());
    }
    std::fputs("tee_tool: see the top of tee_tool.cpp\n", stderr);
    return 64;
}
