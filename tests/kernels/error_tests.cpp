#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "kernels/base/error.hpp"

namespace gptqd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Error caught(void (*body)()) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorKind::internal, "nothing was thrown");
}

void nested() {
  with_context("quantizing fc1",
               [] { with_context("factoring H", [] { throw Error(ErrorKind::input, "minor 17 is not positive"); }); });
}

TEST(ErrorContext, OutermostComesFirst) {
  const Error error = caught(nested);

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_EQ(error.message(), "minor 17 is not positive");
  EXPECT_THAT(error.contexts(), ElementsAre("while quantizing fc1", "while factoring H"));
  EXPECT_EQ(error.one_line(), "while quantizing fc1: while factoring H: minor 17 is not positive");
}

TEST(ErrorContext, WhatHasOneLineAContextWithItsPlace) {
  const std::string what = caught(nested).what();

  EXPECT_THAT(what, StartsWith("while quantizing fc1 [kernels/error_tests.cpp:"));
  EXPECT_THAT(what, HasSubstr("]\nwhile factoring H ["));
  EXPECT_THAT(what, HasSubstr("]\nminor 17 is not positive ["));
}

TEST(ErrorContext, OtherExceptionsBecomeInternalErrors) {
  const Error error = caught([] { with_context("reading", [] { throw std::runtime_error("bad luck"); }); });

  EXPECT_EQ(error.kind(), ErrorKind::internal);
  EXPECT_EQ(error.one_line(), "while reading: bad luck");
}

TEST(ErrorContext, WantOfMemoryGetsANextStep) {
  const Error error = caught([] { with_context("reading", [] { throw std::bad_alloc(); }); });

  EXPECT_EQ(error.kind(), ErrorKind::internal);
  EXPECT_THAT(error.one_line(), StartsWith("while reading: out of memory; use more ranks"));
}

TEST(ErrorContext, ResultsPassThrough) {
  int value = 3;

  int& result = with_context("adding", [&]() -> int& { return ++value; });

  EXPECT_EQ(&result, &value);
  EXPECT_EQ(value, 4);
}

TEST(ErrorExitCode, FollowsSysexits) {
  EXPECT_EQ(exit_code(ErrorKind::usage), 64);
  EXPECT_EQ(exit_code(ErrorKind::input), 65);
  EXPECT_EQ(exit_code(ErrorKind::internal), 70);
  EXPECT_EQ(exit_code(ErrorKind::io), 74);
  EXPECT_EQ(exit_code(ErrorKind::stopped), 75);
  EXPECT_EQ(exit_code(ErrorKind::no_gain), 69);
}

TEST(Require, ThrowsInternalErrorOnlyWhenBroken) {
  EXPECT_NO_THROW(require(true, "fine"));
  EXPECT_EQ(caught([] { require(false, "broken"); }).message(), "broken");
}

}  // namespace
}  // namespace gptqd
