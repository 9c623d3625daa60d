#pragma once
/// @file A loop on a few threads of its own, for work that waits for disks.
#include <cstdint>
#include <functional>

namespace gptqd::pipeline {

/// body(i) for i in [0, count), in any order, on at most `threads` threads.
/// @throws what the body of the lowest i threw, of those that threw; bodies that have not begun by then are left out
void run_parallel(std::int64_t count, int threads, const std::function<void(std::int64_t)>& body);

}  // namespace gptqd::pipeline
