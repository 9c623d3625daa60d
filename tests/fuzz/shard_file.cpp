/// @file Fuzzes the reader of shards as runs use it: a file that is not what its sidecar says is an input error,
/// whatever is wrong with it, and libhdf5 never sees it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "kernels/base/error.hpp"
#include "tests/fuzz/damaged_shard.hpp"
#include "tests/fuzz/memory_folder.hpp"

namespace {

using gptqd::io::ShardStatus;

void demand(bool condition) {
  if (!condition) {
    std::abort();
  }
}

struct Fixture {
  gptqd::fuzz::MemoryFolder folder;
  gptqd::io::ShardStore store{folder.path()};
  std::vector<std::byte> image = gptqd::fuzz::small_image();

  Fixture() { store.write(gptqd::fuzz::small_shard()); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Fixture fixture;
  const auto file = gptqd::fuzz::damaged(fixture.image, {data, size});
  fixture.folder.write(fixture.store.shard_path(0), file);
  const bool intact = std::ranges::equal(file, fixture.image);
  demand(fixture.store.state(0).status == (intact ? ShardStatus::valid : ShardStatus::damaged));
  try {
    const auto shard = fixture.store.read(0);
    demand(intact && shard.linears.size() == 2);
  } catch (const gptqd::Error& error) {
    demand(!intact && error.kind() == gptqd::ErrorKind::input);
  }
  return 0;
}
