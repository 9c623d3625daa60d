#pragma once
/// @file The error of a call that has to fail.
#include <gtest/gtest.h>

#include "kernels/base/error.hpp"

namespace gptqd::gptq::test {

/// The Error that `body` throws; fails the test if it throws none.
template <class Body>
Error error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no Error was thrown";
  return Error(ErrorKind::internal, "");
}

}  // namespace gptqd::gptq::test
