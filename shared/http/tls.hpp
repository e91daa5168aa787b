#pragma once
#include <string>

namespace dstack::http
{

/// TLS 1.2 is the minimum everywhere.
struct TlsServerConfig
{
    enum class ClientCertificate
    {
        none,        ///< not asked for
        request_any, ///< asked for, any is taken: the handler judges it (RA-TLS carries its proof inside)
        request_ca,  ///< asked for; one that `client_ca_pem` did not issue ends the handshake
        require_ca,  ///< as request_ca, and a client without one is refused
    };
    std::string cert_chain_pem; ///< leaf first
    std::string key_pem;
    ClientCertificate client_certificate = ClientCertificate::none;
    std::string client_ca_pem{};
};

struct TlsClientConfig
{
    enum class Verify
    {
        system, ///< the machine's trust store
        ca,     ///< only `ca_pem`
        none,   ///< any certificate: the caller judges ClientResponse::peer_certificate_der
    };
    Verify verify = Verify::system;
    std::string ca_pem{};
    std::string server_name{}; ///< for SNI and verification; empty: the URL's host
    std::string cert_chain_pem{}; ///< the client's own, with `key_pem`; may be empty
    std::string key_pem{};
};

} // namespace dstack::http
