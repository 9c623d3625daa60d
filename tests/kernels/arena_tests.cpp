#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <future>
#include <limits>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cpu/arena.hpp"
#include "kernels/cpu/cpu_stream.hpp"

namespace gptqd {
namespace {

using ::testing::HasSubstr;

class ArenaTest : public ::testing::Test {
 protected:
  std::shared_ptr<WorkClock> clock_ = std::make_shared<WorkClock>();
  Arena arena_{clock_};
};

TEST_F(ArenaTest, HandsOutAlignedMemoryThatDoesNotOverlap) {
  std::vector<Buffer> buffers;
  for (const std::int64_t bytes : {1, 255, 256, 257, 1000, 4096, 100000, 5000000}) {
    buffers.push_back(arena_.allocate(bytes));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffers.back().data()) % 256, 0u);
    EXPECT_EQ(buffers.back().bytes(), bytes);
    std::memset(buffers.back().data(), static_cast<int>(buffers.size()), static_cast<std::size_t>(bytes));
  }
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    const auto* bytes = static_cast<const unsigned char*>(buffers[i].data());
    EXPECT_EQ(bytes[0], i + 1);
    EXPECT_EQ(bytes[buffers[i].bytes() - 1], i + 1);
  }
}

TEST_F(ArenaTest, CountsBytesInUseAndTheirPeak) {
  auto a = arena_.allocate(1000);
  auto b = arena_.allocate(500);
  a = Buffer();

  EXPECT_EQ(arena_.bytes_in_use(), 500);
  EXPECT_EQ(arena_.peak_bytes(), 1500);
  b = Buffer();
  EXPECT_EQ(arena_.bytes_in_use(), 0);
  EXPECT_EQ(arena_.peak_bytes(), 1500);
}

TEST_F(ArenaTest, MovingABufferReleasesItOnce) {
  auto a = arena_.allocate(1000);
  auto b = std::move(a);
  a = std::move(b);

  EXPECT_EQ(arena_.bytes_in_use(), 1000);
}

TEST_F(ArenaTest, ZeroBytesAreAnEmptyBuffer) {
  EXPECT_FALSE(arena_.allocate(0));
  EXPECT_EQ(arena_.bytes_in_use(), 0);
}

TEST_F(ArenaTest, ReusesAReleasedBlock) {
  auto a = arena_.allocate(1000);
  void* const memory = a.data();
  a = Buffer();

  EXPECT_EQ(arena_.allocate(1000).data(), memory);
}

TEST_F(ArenaTest, ReusesForSizesOfTheSameClass) {
  auto a = arena_.allocate(1000000);
  void* const memory = a.data();
  a = Buffer();

  EXPECT_EQ(arena_.allocate(999000).data(), memory);
}

TEST_F(ArenaTest, AReleasedBlockWaitsForTheWorkEnqueuedBefore) {
  CpuStream stream(clock_);
  std::promise<void> gate;
  auto a = arena_.allocate(1000);
  void* const memory = a.data();
  stream.enqueue([memory, open = gate.get_future().share()] {
    open.wait();
    std::memset(memory, 1, 1000);
  });
  a = Buffer();

  auto other = arena_.allocate(1000);
  EXPECT_NE(other.data(), memory);
  gate.set_value();
  stream.synchronize();
  // The work may be over a moment before it counts as over.
  Buffer again = arena_.allocate(1000);
  for (int i = 0; i < 1000 && again.data() != memory; ++i) {
    again = Buffer();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    again = arena_.allocate(1000);
  }
  EXPECT_EQ(again.data(), memory);
}

TEST_F(ArenaTest, AReleasedBlockDoesNotWaitForWorkEnqueuedAfter) {
  CpuStream stream(clock_);
  std::promise<void> gate;
  auto a = arena_.allocate(1000);
  void* const memory = a.data();
  a = Buffer();
  stream.enqueue([open = gate.get_future().share()] { open.wait(); });

  EXPECT_EQ(arena_.allocate(1000).data(), memory);

  gate.set_value();
}

TEST_F(ArenaTest, AStreamThatIsGoneHoldsNothingBack) {
  auto a = arena_.allocate(1000);
  void* const memory = a.data();
  {
    CpuStream stream(clock_);
    stream.enqueue([] {});
    a = Buffer();
  }

  EXPECT_EQ(arena_.allocate(1000).data(), memory);
}

TEST_F(ArenaTest, ImpossibleRequestsNameTheirBytes) {
  auto held = arena_.allocate(1234);
  for (const std::int64_t bytes : {std::int64_t{1} << 60, std::numeric_limits<std::int64_t>::max()}) {
    try {
      auto buffer = arena_.allocate(bytes);
      FAIL() << "expected an Error";
    } catch (const Error& error) {
      EXPECT_THAT(error.message(), HasSubstr(std::to_string(bytes)));
      EXPECT_THAT(error.message(), HasSubstr("1234 bytes in use"));
    }
  }
  EXPECT_EQ(arena_.bytes_in_use(), 1234);
  EXPECT_THROW(arena_.allocate(-1), Error);
}

TEST_F(ArenaTest, KeepsNoMoreThanThePeakAndAnAllowance) {
  constexpr std::int64_t allowance = std::int64_t{64} << 20;
  std::int64_t bytes = 1 << 20;
  for (int i = 0; i < 40; ++i) {
    auto buffer = arena_.allocate(bytes);
    buffer = Buffer();
    bytes += bytes / 8;
    EXPECT_LE(arena_.bytes_cached(), 2 * arena_.peak_bytes() + allowance);
  }
}

TEST(Arena, BuffersMayOutliveIt) {
  Buffer buffer;
  {
    Arena arena(std::make_shared<WorkClock>());
    buffer = arena.allocate(1000);
  }
  std::memset(buffer.data(), 1, 1000);
}

TEST_F(ArenaTest, ServesSeveralThreads) {
  CpuStream stream(clock_);
  const auto work = [&](int seed) {
    for (int i = 0; i < 300; ++i) {
      const std::int64_t bytes = 1 + (i * 7919 + seed) % 5000;
      Buffer buffer = arena_.allocate(bytes);
      std::memset(buffer.data(), seed, static_cast<std::size_t>(bytes));
      stream.enqueue([data = buffer.data(), bytes] { std::memset(data, 0, static_cast<std::size_t>(bytes)); });
    }
  };

  std::thread other([&] { work(1); });
  work(2);
  other.join();
  stream.synchronize();

  EXPECT_EQ(arena_.bytes_in_use(), 0);
}

}  // namespace
}  // namespace gptqd
