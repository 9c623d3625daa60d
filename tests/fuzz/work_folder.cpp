/// @file Fuzzes the JSON files of a work folder: run.json, a shard's sidecar, manifest.json and the lock. Any bytes in
/// them give a work folder's content or an input error, nothing else. The first byte of the input chooses the file.
#include "pipeline/work_folder.hpp"

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "io/folder_lock.hpp"
#include "kernels/base/error.hpp"
#include "pipeline/fingerprint.hpp"
#include "tests/fuzz/damaged_shard.hpp"
#include "tests/fuzz/memory_folder.hpp"

namespace {

namespace io = gptqd::io;
namespace pipeline = gptqd::pipeline;

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

struct Fixture {
  gptqd::fuzz::MemoryFolder folder;
  io::ShardStore store{folder.path()};

  Fixture() { store.write(gptqd::fuzz::small_shard()); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Fixture fixture;
  const auto& work = fixture.folder.path();
  const std::array files{pipeline::fingerprint_path(work), fixture.store.sidecar_path(0), work / "manifest.json",
                         pipeline::lock_path(work)};
  if (size == 0) {
    return 0;
  }
  const std::size_t which = data[0] % files.size();
  fixture.folder.write(files[which], std::as_bytes(std::span(data, size)).subspan(1));
  switch (which) {
    case 0:
      expect_input_error_at_most([&] {
        const auto record = pipeline::read_run_record(work);
        pipeline::fingerprint_differences(record.fingerprint, {{"spec", {{"bits", 4}}}});
      });
      expect_input_error_at_most([&] {
        pipeline::open_work_folder(work, {.fingerprint = {{"spec", {{"bits", 4}}}}, .facts = {{"model", "m"}}}, true,
                                   [](const std::string&) {});
      });
      break;
    case 1:
      expect_input_error_at_most([&] { fixture.store.state(0); });
      expect_input_error_at_most([&] { fixture.store.read(0); });
      expect_input_error_at_most([&] {
        const auto state = pipeline::look_at_work(fixture.store, 1, false);
        state.estimated_seconds(0, true);
      });
      break;
    case 2:
      expect_input_error_at_most([&] { fixture.store.read_manifest(); });
      break;
    default:
      expect_input_error_at_most([&] {
        const io::LockTimes at_once{.beat = std::chrono::milliseconds(0), .patience = std::chrono::milliseconds(0)};
        if (const auto holder = io::look_at_lock(files[which], at_once).holder) {
          holder->describe();
        }
      });
  }
  return 0;
}
