#pragma once
/// @file The error of a call.
#include "kernels/base/error.hpp"

namespace gptqd::pipeline::test {

/// The Error that `body` throws; one with the message "no error" when it throws none.
template <class Body>
Error error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorKind::stopped, "no error");
}

}  // namespace gptqd::pipeline::test
