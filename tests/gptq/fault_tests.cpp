/// @file A rank that dies or stops in the midst of an exchange of device data: all end soon, with a message.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iterator>
#include <sstream>

#include "tests/support/run_command.hpp"

namespace gptqd::gptq {
namespace {

using gptqd::test::becomes_true;
using gptqd::test::Command;
using ::testing::HasSubstr;

struct Case {
  std::string operation;
  std::string signal;
};
void PrintTo(const Case& value, std::ostream* out) { *out << value.signal << " in " << value.operation; }

class DeviceFault : public ::testing::TestWithParam<Case> {};

TEST_P(DeviceFault, EndsAllRanks) {
  std::istringstream launcher(GPTQD_MPIEXEC " " GPTQD_MPIEXEC_FLAGS " -np 2 " GPTQD_FAULT_PROGRAM);
  std::vector<std::string> words{std::istream_iterator<std::string>(launcher), {}};
  words.insert(words.end(), {GetParam().operation, GetParam().signal, "1", "2"});
  Command job(words);

  const auto code = job.wait(30);

  ASSERT_TRUE(code.has_value()) << job.err();
  EXPECT_NE(*code, 0);
  EXPECT_THAT(job.out(), HasSubstr("now"));  // it was at work
  EXPECT_TRUE(becomes_true(5, [&] { return job.processes().empty(); }));
  if (GetParam().signal == "stop") {
    EXPECT_THAT(job.err(),
                HasSubstr("gptq-dist: rank 1 has been silent for 2 s (block 3, " + GetParam().operation + ")"));
  }
}

INSTANTIATE_TEST_SUITE_P(, DeviceFault,
                         ::testing::Values(Case{"broadcast", "kill"}, Case{"broadcast", "stop"},
                                           Case{"all_gather", "stop"}, Case{"factorization", "kill"},
                                           Case{"factorization", "stop"}),
                         [](const auto& info) { return info.param.signal + "_in_" + info.param.operation; });

}  // namespace
}  // namespace gptqd::gptq
