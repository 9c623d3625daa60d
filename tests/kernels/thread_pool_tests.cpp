#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/base/error.hpp"
#include "kernels/cpu/thread_pool.hpp"

namespace gptqd {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

class ThreadPoolOf : public ::testing::TestWithParam<int> {
 protected:
  Progress progress_;
  ThreadPool pool_{GetParam(), &progress_};
};

TEST_P(ThreadPoolOf, RunsEveryIndexOnce) {
  for (const std::int64_t count : {1, 2, 3, 64, 1000}) {
    std::vector<int> runs(static_cast<std::size_t>(count), 0);

    pool_.parallel_for(count, [&](std::int64_t index, int) { ++runs[static_cast<std::size_t>(index)]; });

    EXPECT_THAT(runs, Each(1));
  }
}

TEST_P(ThreadPoolOf, WithoutIndicesRunsNothing) {
  pool_.parallel_for(0, [](std::int64_t, int) { FAIL(); });
  pool_.parallel_for(-1, [](std::int64_t, int) { FAIL(); });
}

TEST_P(ThreadPoolOf, WorkersAreNumberedAndNeverRunTwiceAtOnce) {
  std::vector<std::atomic<int>> inside(static_cast<std::size_t>(pool_.threads()));
  std::atomic<bool> wrong{false};

  for (int repeat = 0; repeat < 200; ++repeat) {
    pool_.parallel_for(16, [&](std::int64_t, int worker) {
      if (worker < 0 || worker >= pool_.threads() || inside[static_cast<std::size_t>(worker)].fetch_add(1) != 0) {
        wrong = true;
        return;
      }
      inside[static_cast<std::size_t>(worker)].fetch_sub(1);
    });
  }

  EXPECT_FALSE(wrong);
}

TEST_P(ThreadPoolOf, TicksOncePerTile) {
  pool_.parallel_for(37, [](std::int64_t, int) {});

  EXPECT_EQ(progress_.ticks(), 37u);
}

TEST_P(ThreadPoolOf, RethrowsTheExceptionOfTheLowestIndex) {
  const auto body = [](std::int64_t index, int) {
    if (index % 10 == 7) {
      throw std::runtime_error("tile " + std::to_string(index));
    }
  };

  for (int repeat = 0; repeat < 50; ++repeat) {
    try {
      pool_.parallel_for(100, body);
      FAIL() << "expected an exception";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "tile 7");
    }
  }
}

TEST_P(ThreadPoolOf, GoesOnAfterAnException) {
  EXPECT_THROW(pool_.parallel_for(8, [](std::int64_t, int) { throw std::runtime_error("no"); }), std::runtime_error);
  std::atomic<int> runs{0};

  pool_.parallel_for(8, [&](std::int64_t, int) { ++runs; });

  EXPECT_EQ(runs, 8);
}

TEST_P(ThreadPoolOf, RefusesWorkFromInsideATile) {
  try {
    pool_.parallel_for(4, [&](std::int64_t, int) { pool_.parallel_for(1, [](std::int64_t, int) {}); });
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_THAT(error.message(), HasSubstr("inside a tile"));
  }
}

TEST_P(ThreadPoolOf, SeveralCallersTakeTurns) {
  std::array<std::atomic<int>, 2> inside{};
  std::atomic<std::int64_t> total{0};
  std::atomic<bool> mixed{false};
  const auto caller = [&](std::size_t which) {
    for (int repeat = 0; repeat < 100; ++repeat) {
      pool_.parallel_for(5, [&](std::int64_t index, int) {
        ++inside[which];
        mixed = mixed || inside[1 - which] != 0;
        total += index;
        --inside[which];
      });
    }
  };

  std::thread other([&] { caller(1); });
  caller(0);
  other.join();

  EXPECT_EQ(total, 2 * 100 * 10);
  EXPECT_FALSE(mixed);
}

TEST_P(ThreadPoolOf, ScratchIsAlignedAndEachWorkersOwn) {
  pool_.parallel_for(64, [&](std::int64_t index, int worker) {
    auto* memory = pool_.scratch<std::int64_t>(worker, 100 + index);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 256, 0u);
    for (std::int64_t i = 0; i < 100 + index; ++i) {
      memory[i] = index;
    }
    std::this_thread::yield();
    for (std::int64_t i = 0; i < 100 + index; ++i) {
      ASSERT_EQ(memory[i], index);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(, ThreadPoolOf, ::testing::Values(1, 2, 3, 8));

TEST(ThreadPool, TakesAllCpusByDefault) {
  EXPECT_EQ(ThreadPool().threads(), available_cpus());
  EXPECT_GE(available_cpus(), 1);
}

TEST(ThreadPool, RefusesANegativeNumber) { EXPECT_THROW(ThreadPool(-1), Error); }

TEST(ThreadPool, HelpersDoWork) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};

  // Neither tile can end before both have begun.
  pool.parallel_for(2, [&](std::int64_t, int) {
    ++arrived;
    while (arrived < 2) {
      std::this_thread::yield();
    }
  });

  EXPECT_EQ(arrived, 2);
}

}  // namespace
}  // namespace gptqd
