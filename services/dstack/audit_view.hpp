#pragma once
#include "bus/schema/audit.hpp"
#include "shared/ledger/verify.hpp"
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::cli
{

// What the decision ledger says, as text and as JSON. A record is a line of the ledger (docs/ledger.md).

/// What of a record is shown in lists and chains.
struct RecordView
{
    std::uint64_t sequence = 0;
    std::string time;
    std::string kind;
    bool decision = false;
    bool allowed = false;
    std::string rule;
    std::string reason;
    std::string app_id;
    std::string compose_hash;
    std::string instance_id;
    std::string change;
    std::string by;
    std::string policy_hash;
    std::string agent;
    std::vector<schema::Check> checks;
};
RecordView view_record(std::string_view line);

std::string records_text(const std::vector<std::string>& lines);
/// {"records":[...],"next":N}
std::string records_json(const std::vector<std::string>& lines, std::uint64_t next);

std::string record_text(std::string_view line);
/// The record with its own hash.
std::string record_json(std::string_view line);

std::string why_text(const schema::AuthExplain::Reply& reply, std::string_view app_name);
std::string why_json(const schema::AuthExplain::Reply& reply, std::string_view app_name);

std::string test_text(const schema::AuthTestPolicy::Reply& reply, bool one_boot);
std::string test_json(const schema::AuthTestPolicy::Reply& reply);

std::string verify_text(const ledger::VerifyReport& report, const std::string& directory);
std::string verify_json(const ledger::VerifyReport& report, const std::string& directory);

} // namespace dstack::cli
