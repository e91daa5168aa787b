#pragma once
#include "services/auth/chain/endpoint.hpp"
#include "services/auth/chain/race.hpp"
#include "services/auth/decide.hpp"

// What the KMS and the ledger are told about a finding. Pure.
namespace dstack::auth::chain
{

struct Knowledge
{
    const Settings& settings;
    std::span<const Endpoint> endpoints;
    std::span<const EndpointHealth> health;
    Clock::time_point now{};
};

/// Rule "contract" when the contract decided; "chain" when it could not be asked.
Verdict verdict_of(Kind kind, const Finding& finding, const Knowledge& known);
/// Why nothing is known, without an end: "no rpc endpoint answered: a.example: rpc_timeout (no answer); ...".
std::string cause_of(const Finding& finding, const Knowledge& known);

/// The newest that GET / was told.
struct InfoValues
{
    Answer answer{};
    Clock::time_point at{};
};
/// The body of GET /. `cause`: why it is not newer; empty: it has just been asked for.
std::string info_body(const InfoValues& values, std::string_view cause, const Knowledge& known);
std::string info_error(std::string_view cause);

/// Families of GET /metrics.
void append_metrics(std::string& out, const Knowledge& known, const std::optional<InfoValues>& values);

} // namespace dstack::auth::chain
