#pragma once
#include "services/kms-local/keys.hpp"

namespace dstack::kms
{

struct Loaded
{
    RootKeys keys;
    Identity identity;
    bool bootstrapped = false; ///< made just now: this happens once in the life of a state directory
};

/// `state_dir`/keys/ holds the root keys, `state_dir`/identity.json what they are known by. Keys are made when neither is
/// there; the directory appears as a whole, so a crash leaves none or all. Anything incomplete, or another identity than the
/// recorded one, is data_loss with what is missing: nothing is ever made again over it. `expected_ca`, when not empty, is
/// the CA fingerprint that the supervisor has pinned: then nothing is made at all, and other keys are refused.
/// Blocking; takes an exclusive lock meanwhile.
Result<Loaded> open_key_store(const std::string& state_dir, std::string_view expected_ca);

} // namespace dstack::kms
