#include "comm/world.hpp"

#include "comm/job_state.hpp"

namespace gptqd::comm {

LongHostStep::LongHostStep(std::shared_ptr<JobState> job, std::string_view what)
    : job_(std::move(job)), id_(job_->begin_long_step(what)) {}

LongHostStep::~LongHostStep() {
  if (job_) {
    job_->end_long_step(id_);
  }
}

std::string describe_saved(std::int64_t saved) {
  if (saved == 0) {
    return "no new block was finished, give the next run more time or more ranks";
  }
  return fmt::format("{} new block{} kept, run the same command again", saved, saved == 1 ? " is" : "s are");
}

}  // namespace gptqd::comm
