#pragma once
/// @file Durations for people.
#include <string>

namespace gptqd {

/// "1 h 02 min", "3 min 20 s", "3.4 s".
std::string human_seconds(double seconds);

}  // namespace gptqd
