/// @file What a damaged shard does whose checksum was made to fit: shard_image COUNT [SEED [FIRST]].
///
/// libhdf5 then reads damaged bytes, and is known to crash on some and to loop on others. So it reads them in a child
/// process, which this program starts again. Every other input has to give a shard or an input error, within ten
/// seconds. Prints the counts; exits with 1 when there was another exception or a hang outside libhdf5.
#include <dlfcn.h>
#include <execinfo.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
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
constexpr int stuck_in_hdf5 = 3;
constexpr int stuck_elsewhere = 4;

/// Shared by parent and child, of which one writes at a time.
struct Counts {
  std::atomic<std::int64_t> next = 0;  ///< the input under way
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
  for (; counts.next < end; ++counts.next) {
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

/// Handler of the child's SIGALRM: the exit status tells where it is stuck.
void tell_where(int) {
  std::array<void*, 64> frames{};
  const int depth = ::backtrace(frames.data(), static_cast<int>(frames.size()));
  for (int i = 0; i < depth; ++i) {
    Dl_info info{};
    if (::dladdr(frames[static_cast<std::size_t>(i)], &info) != 0 &&
        std::strstr(info.dli_fname, "libhdf5") != nullptr) {
      ::_exit(stuck_in_hdf5);
    }
  }
  ::_exit(stuck_elsewhere);
}

/// Waits for the child; asks one that is busy with one input for too long where it is, and ends it.
/// @returns its status
int wait_for(pid_t child, const Counts& counts) {
  std::int64_t seen = counts.next;
  auto since = Clock::now();
  int status = 0;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    std::this_thread::sleep_for(2ms);
    if (counts.next != seen) {
      seen = counts.next;
      since = Clock::now();
    } else if (Clock::now() - since > time_limit) {
      ::kill(child, SIGALRM);
      std::this_thread::sleep_for(1s);
      ::kill(child, SIGKILL);
    }
  }
  return status;
}

}  // namespace

/// Reports of crashes name addresses alone, which is fast, and allocations of terabytes fail as they do elsewhere.
extern "C" const char* __asan_default_options() { return "symbolize=0:allocator_may_return_null=1"; }

int main(int argc, char** argv) {
  if (argc < 2 || std::atoll(argv[1]) <= 0) {
    fmt::print(stderr, "usage: shard_image COUNT [SEED [FIRST]]\n");
    return 64;
  }
  const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const std::int64_t first = argc > 3 ? std::atoll(argv[3]) : 0;
  const std::int64_t last = first + std::atoll(argv[1]);
  void* shared = ::mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    return 1;
  }
  auto& counts = *new (shared) Counts;
  const auto image = gptqd::fuzz::small_image();
  std::int64_t crashes = 0;
  std::int64_t loops = 0;
  std::int64_t other_hangs = 0;
  for (counts.next = first; counts.next < last;) {
    const std::int64_t end = std::min(last, counts.next.load() + inputs_of_a_child);
    const pid_t child = ::fork();
    if (child < 0) {
      return 1;
    }
    if (child == 0) {
      ::signal(SIGALRM, tell_where);
      read_inputs(counts, image, end, seed);
      ::_exit(0);
    }
    const int status = wait_for(child, counts);
    if (status == 0) {
      continue;
    }
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    if (code == stuck_in_hdf5) {
      ++loops;
    } else if (code == stuck_elsewhere || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) {
      ++other_hangs;
      fmt::print(stderr, "input {} of seed {} took more than {} s\n", counts.next.load(), seed, time_limit.count());
    } else {
      ++crashes;
    }
    ++counts.next;
  }
  fmt::print(
      "{} inputs: {} shards, {} input errors, {} crashes and {} endless loops of the child in libhdf5; {} other "
      "hangs, {} other exceptions\n",
      last - first, counts.shards, counts.input_errors, crashes, loops, other_hangs, counts.other_exceptions);
  return other_hangs == 0 && counts.other_exceptions == 0 ? 0 : 1;
}
