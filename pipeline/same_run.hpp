#pragma once
/// @file All ranks of a job make the same run: nodes may differ in programs, libraries, CPUs and local copies of a
/// model.
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "comm/world.hpp"

namespace gptqd::pipeline {

/// Compares every rank's fingerprint with rank 0's. Collective.
///
/// @param fingerprint  what this rank's result would depend on
/// @param allow_mixed  differences in the environment alone (program, BLAS, kernel set, GPU) are noted, not refused
/// @param note         called on rank 0
/// @throws Error (input) on a rank whose fingerprint is another, naming both hosts and the fields
void require_same_run(comm::World& world, const nlohmann::json& fingerprint, bool allow_mixed,
                      const std::function<void(const std::string&)>& note);

}  // namespace gptqd::pipeline
