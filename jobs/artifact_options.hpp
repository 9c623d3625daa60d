#pragma once
/// @file Options on the artifact that several commands have.
#include <cstdint>
#include <optional>

#include "io/artifact/artifact_format.hpp"
#include "jobs/command_line.hpp"

namespace gptqd::jobs {

/// --format and --max-shard-size.
boost::program_options::options_description artifact_options();
/// --format, where it is given. @throws Error (usage) for one that does not exist
std::optional<io::ArtifactFormat> artifact_format(const CommandLine& line);
/// --max-shard-size in bytes. @throws Error (usage) unless it is positive
std::int64_t max_shard_bytes(const CommandLine& line);

}  // namespace gptqd::jobs
