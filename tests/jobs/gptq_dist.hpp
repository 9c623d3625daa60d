#pragma once
/// @file Runs of the program gptq-dist on the demo model, and what they leave on disk.
#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/run_command.hpp"

namespace gptqd::jobs::test {

using gptqd::test::Command;
using gptqd::test::CommandOptions;
using gptqd::test::CommandResult;
using gptqd::test::read_text;
using gptqd::test::run_command;
using gptqd::test::source_path;
using gptqd::test::TemporaryFolder;
using gptqd::test::write_text;

using Words = std::vector<std::string>;
/// Options by name, with dashes; flags have no value.
using Options = std::map<std::string, std::string>;

/// A model of jobs/demo.
std::filesystem::path demo_model(const std::string& name = "opt-7m");
/// 128 windows of 512 tokens of the demo's calibration text.
std::filesystem::path calibration_tokens();

/// A quantization of the demo model that takes a second: 16 windows of 128 tokens. `changes` are added, or replace what
/// is there.
Options quick_run(const std::filesystem::path& out, const Options& changes = {});

/// Command lines of gptq-dist on one rank without a launcher, or on several under mpirun.
Words command_line(int ranks, const Words& arguments);
Words command_line(int ranks, const Options& options);
CommandResult gptq_dist(int ranks, const Words& arguments, const CommandOptions& options = {});
CommandResult gptq_dist(int ranks, const Options& options, const CommandOptions& command_options = {});
/// The same; a test failure unless it exits with 0.
CommandResult expect_success(int ranks, const Options& options, const CommandOptions& command_options = {});

/// Checksum of every file below a folder whose name ends with `ending`, by relative path.
std::map<std::string, std::string> checksums(const std::filesystem::path& folder, const std::string& ending = "");

/// What decides whether two runs agree: the files of the artifact and the shards.
struct RunBytes {
  std::map<std::string, std::string> artifact;
  std::map<std::string, std::string> shards;
  bool operator==(const RunBytes&) const = default;
};
void PrintTo(const RunBytes& bytes, std::ostream* out);
RunBytes bytes_of_run(const std::filesystem::path& out);

/// OUT.work.
std::filesystem::path work_of(const std::filesystem::path& out);
/// OUT.work/report.json.
nlohmann::json report_of(const std::filesystem::path& out);

/// Files and folders below `folder` that a finished or failed run must not leave: *.tmp and *.partial.
std::vector<std::string> half_written(const std::filesystem::path& folder);

}  // namespace gptqd::jobs::test
