#include "tests/comm/mpi_main.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iostream>
#include <sstream>

namespace gptqd::comm::test {

namespace {

World* the_world = nullptr;

/// Ranks other than 0 speak up when they fail.
class FailurePrinter final : public ::testing::EmptyTestEventListener {
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (result.failed()) {
      std::ostringstream text;
      text << "rank " << the_world->rank() << ": " << result;
      std::cout << text.str() << std::flush;
    }
  }
};

}  // namespace

World& world() { return *the_world; }

}  // namespace gptqd::comm::test

int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  const auto world = gptqd::comm::World::start({.stall_seconds = 30});
  gptqd::comm::test::the_world = world.get();
  if (world->rank() != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new gptqd::comm::test::FailurePrinter);
  }
  const int failed = RUN_ALL_TESTS();
  const auto any_failed = world->group().all_max(failed, "result of the tests");
  world->finish();
  return static_cast<int>(any_failed);
}
