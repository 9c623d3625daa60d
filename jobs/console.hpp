#pragma once
/// @file What a run tells its user while it goes on: lines on stderr, a bar on a terminal.
#include <string>

#include "kernels/base/human_seconds.hpp"
#include "pipeline/quantize_run.hpp"

namespace gptqd::jobs {

/// One line of the log.
void note(const std::string& line);

/// Notes and blocks of a run, with the time that is left; on a terminal the blocks become one bar.
pipeline::RunObserver console_observer();

/// "1.23 GB", "512 B".
std::string human_bytes(std::int64_t bytes);

}  // namespace gptqd::jobs
