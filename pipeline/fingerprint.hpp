#pragma once
/// @file What a run's result depends on, as JSON: a rerun continues only what has the same.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace gptqd::pipeline {

/// XXH3-128 of the JSON's canonical text.
std::string fingerprint_hash(const nlohmann::json& fingerprint);

/// The fields in which two fingerprints differ, one line each: "spec.bits: 4 there, 3 here".
std::vector<std::string> fingerprint_differences(const nlohmann::json& there, const nlohmann::json& here);

/// Whether no other fields than those of the environment (tool version, backend, BLAS) are among these differences.
bool only_environment_differs(const std::vector<std::string>& differences);

/// Where a work folder keeps the fingerprint of its run.
std::filesystem::path fingerprint_path(const std::filesystem::path& work);

}  // namespace gptqd::pipeline
