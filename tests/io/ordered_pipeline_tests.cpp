#include <gmock/gmock.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>

#include "io/ordered_pipeline.hpp"

namespace gptqd::io {
namespace {

TEST(OrderedPipeline, ConsumesInOrderWhatThreadsPrepare) {
  std::vector<std::int64_t> seen;

  ordered_pipeline(
      100, 4, 8,
      [](std::int64_t i) {
        std::this_thread::sleep_for(std::chrono::microseconds((i * 37) % 5 * 100));
        return i * i;
      },
      [&](std::int64_t square) { seen.push_back(square); });

  ASSERT_EQ(seen.size(), 100u);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i], static_cast<std::int64_t>(i * i));
  }
}

TEST(OrderedPipeline, StaysWithinItsWindow) {
  std::atomic<std::int64_t> held{0};
  std::atomic<std::int64_t> most{0};

  ordered_pipeline(
      50, 4, 3,
      [&](std::int64_t i) {
        const auto now = ++held;
        for (auto old = most.load(); now > old && !most.compare_exchange_weak(old, now);) {
        }
        return i;
      },
      [&](std::int64_t) {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        --held;
      });

  EXPECT_LE(most, 3);
  EXPECT_EQ(held, 0);
}

TEST(OrderedPipeline, TheFirstFailureInOrderIsThrown) {
  std::vector<std::int64_t> seen;
  std::string message;

  try {
    ordered_pipeline(
        20, 4, 8,
        [](std::int64_t i) -> std::int64_t {
          if (i == 5 || i == 6) {
            std::this_thread::sleep_for(std::chrono::milliseconds(i == 5 ? 5 : 0));
            throw std::runtime_error(std::to_string(i));
          }
          return i;
        },
        [&](std::int64_t i) { seen.push_back(i); });
  } catch (const std::runtime_error& error) {
    message = error.what();
  }

  EXPECT_EQ(message, "5");
  EXPECT_THAT(seen, testing::ElementsAre(0, 1, 2, 3, 4));
}

TEST(OrderedPipeline, AConsumerThatThrowsEndsIt) {
  EXPECT_THROW(ordered_pipeline(
                   1000, 2, 4, [](std::int64_t i) { return i; },
                   [](std::int64_t i) {
                     if (i == 3) {
                       throw std::runtime_error("full");
                     }
                   }),
               std::runtime_error);
}

TEST(OrderedPipeline, NothingToDoIsDone) {
  ordered_pipeline(
      0, 2, 4, [](std::int64_t i) { return i; }, [](std::int64_t) { FAIL(); });
}

}  // namespace
}  // namespace gptqd::io
