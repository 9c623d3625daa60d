#pragma once
/// @file Files that come with the program.
#include <filesystem>

namespace gptqd::jobs {

/// The general English text that calibrates when the user gives none: share/gptq-dist/calibration.txt beside the
/// program's bin folder, or beside the program itself in a build tree.
/// @throws Error (input) naming the places looked at
std::filesystem::path shipped_calibration_text();

}  // namespace gptqd::jobs
