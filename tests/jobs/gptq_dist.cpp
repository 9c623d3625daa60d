#include "tests/jobs/gptq_dist.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <iterator>
#include <sstream>

#include "io/atomic_file.hpp"
#include "io/checksum.hpp"

namespace gptqd::jobs::test {

namespace fs = std::filesystem;

fs::path demo_model(const std::string& name) { return source_path("jobs/demo/" + name); }

fs::path calibration_tokens() { return source_path("tests/golden/gptq/calib_tokens.safetensors"); }

Options quick_run(const fs::path& out, const Options& changes) {
  Options options{{"--model", demo_model()},
                  {"--calibration", calibration_tokens()},
                  {"--samples", "16"},
                  {"--seqlen", "128"},
                  {"--clip", "none"},  // half of the time of so short a run
                  {"--out", out}};
  for (const auto& [name, value] : changes) {
    options[name] = value;
  }
  return options;
}

Words command_line(int ranks, const Words& arguments) {
  Words words;
  if (ranks > 1) {
    std::istringstream launcher(GPTQD_MPIEXEC " " GPTQD_MPIEXEC_FLAGS);
    words.assign(std::istream_iterator<std::string>(launcher), {});
    words.insert(words.end(), {"-np", std::to_string(ranks)});
  }
  words.push_back(gptqd::test::binary_path("gptq-dist"));
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

Words command_line(int ranks, const Options& options) {
  Words arguments;
  for (const auto& [name, value] : options) {
    arguments.push_back(name);
    if (!value.empty()) {
      arguments.push_back(value);
    }
  }
  return command_line(ranks, arguments);
}

CommandResult gptq_dist(int ranks, const Words& arguments, const CommandOptions& options) {
  return run_command(command_line(ranks, arguments), options);
}

CommandResult gptq_dist(int ranks, const Options& options, const CommandOptions& command_options) {
  return run_command(command_line(ranks, options), command_options);
}

CommandResult expect_success(int ranks, const Options& options, const CommandOptions& command_options) {
  auto result = gptq_dist(ranks, options, command_options);
  EXPECT_EQ(result.code, 0) << fmt::format("{} rank(s): {}\n", ranks, fmt::join(options, " ")) << result.err;
  return result;
}

std::map<std::string, std::string> checksums(const fs::path& folder, const std::string& ending) {
  std::map<std::string, std::string> sums;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const auto name = fs::relative(entry.path(), folder).string();
    if (entry.is_regular_file() && name.ends_with(ending)) {
      sums[name] = io::xxh3_128_hex(io::read_file(entry.path(), std::int64_t{1} << 32));
    }
  }
  return sums;
}

void PrintTo(const RunBytes& bytes, std::ostream* out) {
  *out << fmt::format("artifact {}, shards {}", bytes.artifact, bytes.shards);
}

RunBytes bytes_of_run(const fs::path& out) {
  return {.artifact = checksums(out), .shards = checksums(work_of(out) / "shards", ".h5")};
}

fs::path work_of(const fs::path& out) { return out.string() + ".work"; }

nlohmann::json report_of(const fs::path& out) { return nlohmann::json::parse(read_text(work_of(out) / "report.json")); }

std::vector<std::string> half_written(const fs::path& folder) {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const auto name = entry.path().filename().string();
    if (name.ends_with(".tmp") || name.ends_with(".partial")) {
      found.push_back(name);
    }
  }
  return found;
}

}  // namespace gptqd::jobs::test
