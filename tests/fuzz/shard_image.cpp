/// @file What a damaged shard does whose checksum was made to fit: shard_image COUNT [SEED].
///
/// libhdf5 then reads damaged bytes, and is known to crash on some. So it reads them in a child process, which this
/// program starts again after each crash. Every other input has to give a shard or an input error, within ten seconds
/// and 4 GiB. Prints the counts; exits with 1 when there was another exception or a hang.
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/error.hpp"
#include "tests/fuzz/damaged_shard.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto time_limit = 10s;
/// A child reads at most so many: what libhdf5 leaks is gone then.
constexpr std::int64_t inputs_of_a_child = 20'000;

/// Shared by parent and child; written by one of them at a time but for `next`, which only tells that time passes.
struct Counts {
  volatile std::int64_t next = 0;  ///< the input under way
  std::int64_t shards = 0;
  std::int64_t input_errors = 0;
  std::int64_t other_exceptions = 0;
};

/// Mostly a few changed bytes; now and then another length.
std::vector<std::uint8_t> edits_of(std::int64_t input, std::uint64_t seed) {
  std::mt19937_64 random(seed * 1'000'003 + static_cast<std::uint64_t>(input));
  const auto bytes = 2 + 3 * (1 + random() % 8);
  std::vector<std::uint8_t> edits;
  for (std::size_t i = 0; i < bytes; ++i) {
    edits.push_back(static_cast<std::uint8_t>(random()));
  }
  if (random() % 16 != 0) {
    edits[0] = edits[1] = 0;
  }
  return edits;
}

void read_inputs(Counts& counts, std::span<const std::byte> image, std::int64_t end, std::uint64_t seed) {
  for (; counts.next < end; counts.next = counts.next + 1) {
    try {
      gptqd::io::from_image(gptqd::fuzz::damaged(image, edits_of(counts.next, seed)), "fuzz");
      ++counts.shards;
    } catch (const gptqd::Error& error) {
      ++(error.kind() == gptqd::ErrorKind::input ? counts.input_errors : counts.other_exceptions);
    } catch (const std::exception&) {
      ++counts.other_exceptions;
    }
  }
}

/// Waits for the child; kills one that is busy with one input for too long. @returns false when it was killed
bool wait_for(pid_t child, const Counts& counts, int& status) {
  auto seen = counts.next;
  auto since = Clock::now();
  while (::waitpid(child, &status, WNOHANG) == 0) {
    std::this_thread::sleep_for(2ms);
    if (counts.next != seen) {
      seen = counts.next;
      since = Clock::now();
    } else if (Clock::now() - since > time_limit) {
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
      return false;
    }
  }
  return true;
}

}  // namespace

/// Reports of crashes name addresses alone, which is fast, and allocations of terabytes fail as they do elsewhere.
extern "C" const char* __asan_default_options() { return "symbolize=0:allocator_may_return_null=1"; }

int main(int argc, char** argv) {
  if (argc < 2 || std::atoll(argv[1]) <= 0) {
    fmt::print(stderr, "usage: shard_image COUNT [SEED]\n");
    return 64;
  }
  const std::int64_t count = std::atoll(argv[1]);
  const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  void* shared = ::mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    return 1;
  }
  auto& counts = *new (shared) Counts;
  const auto image = gptqd::io::to_image(gptqd::fuzz::small_shard());
  std::int64_t crashes = 0;
  std::int64_t hangs = 0;
  while (counts.next < count) {
    const std::int64_t end = std::min(count, counts.next + inputs_of_a_child);
    const pid_t child = ::fork();
    if (child == 0) {
      read_inputs(counts, image, end, seed);
      ::_exit(0);
    }
    int status = 0;
    const bool in_time = child > 0 && wait_for(child, counts, status);
    if (!in_time) {
      ++hangs;
      fmt::print(stderr, "input {} of seed {} took more than {} s\n", counts.next, seed, time_limit.count());
    } else if (status != 0) {
      ++crashes;
    }
    if (!in_time || status != 0) {
      counts.next = counts.next + 1;
    }
  }
  fmt::print(
      "{} inputs: {} shards, {} input errors, {} crashes of the child in libhdf5, {} hangs, {} other exceptions\n",
      count, counts.shards, counts.input_errors, crashes, hangs, counts.other_exceptions);
  return hangs == 0 && counts.other_exceptions == 0 ? 0 : 1;
}
