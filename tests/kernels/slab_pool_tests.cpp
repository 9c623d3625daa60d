#include <gtest/gtest.h>

#include <map>
#include <random>

#include "kernels/base/error.hpp"
#include "kernels/base/slab_pool.hpp"

namespace gptqd {
namespace {

TEST(SlabPool, TakesTheSmallestRangeThatFits) {
  SlabPool pool;
  pool.add_slab(0x100000, 4096);
  pool.add_slab(0x200000, 1024);

  EXPECT_EQ(pool.take(1000), SlabPool::Address{0x200000});
  EXPECT_EQ(pool.take(1000), SlabPool::Address{0x100000});
  EXPECT_EQ(pool.take(256), SlabPool::Address{0x100400});
  EXPECT_EQ(pool.free_bytes(), 4096 - 1024 - 256);
  EXPECT_EQ(pool.held_bytes(), 4096 + 1024);
}

TEST(SlabPool, RoundsUpToItsGranularity) {
  SlabPool pool;
  pool.add_slab(0x1000, 768);

  EXPECT_EQ(pool.take(1), SlabPool::Address{0x1000});
  EXPECT_EQ(pool.take(257), SlabPool::Address{0x1100});
  EXPECT_EQ(pool.take(1), std::nullopt);
}

TEST(SlabPool, JoinsNeighboursInAnyOrder) {
  for (const auto& order : {std::array{0, 1, 2}, std::array{2, 1, 0}, std::array{0, 2, 1}, std::array{1, 0, 2}}) {
    SlabPool pool;
    pool.add_slab(0x1000, 768);
    const std::array parts{*pool.take(256), *pool.take(256), *pool.take(256)};
    EXPECT_EQ(pool.free_bytes(), 0);

    for (const int i : order) {
      pool.give_back(parts.at(static_cast<std::size_t>(i)));
    }

    EXPECT_EQ(pool.take(768), SlabPool::Address{0x1000});
  }
}

TEST(SlabPool, NeverJoinsTwoSlabs) {
  SlabPool pool;
  pool.add_slab(0x1000, 256);
  pool.add_slab(0x1100, 256);
  pool.give_back(*pool.take(256));

  EXPECT_EQ(pool.take(512), std::nullopt);
}

TEST(SlabPool, GivesUpIdleSlabsAlone) {
  SlabPool pool;
  pool.add_slab(0x1000, 512);
  pool.add_slab(0x9000, 256);
  const auto held = *pool.take(300);

  EXPECT_EQ(pool.remove_idle_slabs(), std::vector<SlabPool::Address>{0x9000});
  EXPECT_EQ(pool.held_bytes(), 512);
  EXPECT_EQ(pool.take(1), std::nullopt);
  pool.give_back(held);
  EXPECT_EQ(pool.remove_idle_slabs(), std::vector<SlabPool::Address>{0x1000});
  EXPECT_EQ(pool.held_bytes(), 0);
  EXPECT_EQ(pool.free_bytes(), 0);
}

TEST(SlabPool, RefusesMemoryThatIsNotItsOwn) {
  SlabPool pool;
  pool.add_slab(0x1000, 512);
  const auto held = *pool.take(256);
  pool.give_back(held);

  EXPECT_THROW(pool.give_back(held), Error);
  EXPECT_THROW(pool.give_back(0x1010), Error);
  EXPECT_THROW(pool.add_slab(0x1000, 512), Error);
  EXPECT_THROW(pool.add_slab(0x5000, 100), Error);
}

TEST(SlabPool, WhatIsTakenNeverOverlaps) {
  SlabPool pool;
  pool.add_slab(0x100000, 1 << 20);
  pool.add_slab(0x900000, 1 << 18);
  std::mt19937 random(1);
  std::map<SlabPool::Address, std::int64_t> held;
  std::int64_t bytes_held = 0;
  for (int i = 0; i < 20000; ++i) {
    if (random() % 2 == 0 || held.empty()) {
      const auto bytes = static_cast<std::int64_t>(1 + random() % 40000);
      if (const auto address = pool.take(bytes)) {
        const auto rounded = (bytes + 255) / 256 * 256;
        const auto after = held.lower_bound(*address);
        ASSERT_TRUE(after == held.end() || *address + static_cast<std::uintptr_t>(rounded) <= after->first);
        ASSERT_TRUE(after == held.begin() ||
                    std::prev(after)->first + static_cast<std::uintptr_t>(std::prev(after)->second) <= *address);
        held.emplace(*address, rounded);
        bytes_held += rounded;
      }
    } else {
      const auto one = std::next(held.begin(), static_cast<std::ptrdiff_t>(random() % held.size()));
      pool.give_back(one->first);
      bytes_held -= one->second;
      held.erase(one);
    }
    ASSERT_EQ(pool.free_bytes(), pool.held_bytes() - bytes_held);
  }
  for (const auto& [address, bytes] : held) {
    pool.give_back(address);
  }
  EXPECT_EQ(pool.remove_idle_slabs().size(), 2u);
}

}  // namespace
}  // namespace gptqd
