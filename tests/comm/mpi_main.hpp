#pragma once
/// @file The World of a test program that runs under mpirun.
#include "comm/world.hpp"

namespace gptqd::comm::test {

/// Started and ended by main.
World& world();

}  // namespace gptqd::comm::test
