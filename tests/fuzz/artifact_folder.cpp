/// @file Fuzzes what strangers' artifacts go through: any config.json beside any model.safetensors gives a report or an
/// input error, nothing else. The first two bytes of the input say, little-endian, how long config.json is; the weights
/// follow it.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <span>
#include <string>

#include "io/artifact/artifact_reader.hpp"
#include "kernels/base/error.hpp"
#include "pipeline/verify/verify.hpp"
#include "tests/fuzz/memory_folder.hpp"

namespace {

namespace fs = std::filesystem;

/// Runs `read`; any exception but an input error ends the run.
template <class Read>
void expect_input_error_at_most(Read&& read) {
  try {
    read();
  } catch (const gptqd::Error& error) {
    if (error.kind() != gptqd::ErrorKind::input) {
      std::abort();
    }
  }
}

std::ptrdiff_t files_in(const fs::path& folder) {
  return std::distance(fs::recursive_directory_iterator(folder), fs::recursive_directory_iterator());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const gptqd::fuzz::MemoryFolder folder;
  if (size < 2) {
    return 0;
  }
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(2);
  const auto config = std::min<std::size_t>(data[0] + std::size_t{256} * data[1], bytes.size());
  folder.write(folder.path() / "config.json", bytes.first(config));
  folder.write(folder.path() / "model.safetensors", bytes.subspan(config));

  expect_input_error_at_most([&] {
    const auto report = gptqd::pipeline::verify_artifact(
        {.artifact = folder.path(), .tensor_parallel = {1, 2, 3}, .threads = 1}, [](const std::string&) {});
    report.to_json();
    report.to_text();
  });
  expect_input_error_at_most([&] {
    const auto reader = gptqd::io::ArtifactReader::open(folder.path());
    for (const auto& name : reader->linear_names()) {
      reader->read_linear(name);
    }
    reader->passing_names();
  });
  if (files_in(folder.path()) != 2) {
    std::abort();  // nothing is ever written
  }
  return 0;
}
