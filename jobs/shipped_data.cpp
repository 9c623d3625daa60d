#include "jobs/shipped_data.hpp"

#include <array>

#include "kernels/base/error.hpp"

namespace gptqd::jobs {

std::filesystem::path shipped_calibration_text() {
  const auto program = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const std::array places{program.parent_path() / "share/gptq-dist/calibration.txt",
                          program / "share/gptq-dist/calibration.txt"};
  for (const auto& place : places) {
    if (std::filesystem::is_regular_file(place)) {
      return place;
    }
  }
  throw Error(ErrorKind::input, fmt::format("the calibration text that ships with the program is missing (looked for "
                                            "{} and {}); give one with --calibration",
                                            places[0].string(), places[1].string()));
}

}  // namespace gptqd::jobs
