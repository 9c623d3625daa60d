#include "comm/world.hpp"

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "comm/job_state.hpp"

namespace gptqd::comm {

LongHostStep::LongHostStep(std::shared_ptr<JobState> job, std::string_view what)
    : job_(std::move(job)), id_(job_->begin_long_step(what)) {}

LongHostStep::~LongHostStep() {
  if (job_) {
    job_->end_long_step(id_);
  }
}

int launcher_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    const char* text = std::getenv(name);
    if (text == nullptr) {
      continue;
    }
    int rank = 0;
    const char* end = text + std::strlen(text);
    const auto parsed = std::from_chars(text, end, rank);
    if (parsed.ec == std::errc() && parsed.ptr == end && rank >= 0) {
      return rank;
    }
  }
  return 0;
}

}  // namespace gptqd::comm
