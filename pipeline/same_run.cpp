#include "pipeline/same_run.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/base/error.hpp"
#include "pipeline/fingerprint.hpp"

namespace gptqd::pipeline {

void require_same_run(comm::World& world, const nlohmann::json& fingerprint, bool allow_mixed,
                      const std::function<void(const std::string&)>& note) {
  auto& group = world.group();
  const std::string host = group.broadcast_string(world.host_name(), 0, "the host of rank 0");
  const auto first = nlohmann::json::parse(group.broadcast_string(fingerprint.dump(), 0, "the fingerprint of rank 0"));
  const auto differences = fingerprint_differences(first, fingerprint);
  const bool tolerable = allow_mixed && only_environment_differs(differences);
  if (!differences.empty() && !tolerable) {
    throw Error(
        ErrorKind::input,
        fmt::format("this rank, on {}, would not make the same run as rank 0 on {} ({}); give all nodes the same "
                    "program, libraries, kernels (mpirun -x OPENBLAS_CORETYPE=...) and files{}",
                    world.host_name(), host, fmt::join(differences, "; "),
                    only_environment_differs(differences)
                        ? ", or take bytes that depend on how ranks are placed: --allow-mixed"
                        : ""));
  }
  const auto ranks = group.all_gather(differences.empty() ? 0 : 1, "ranks with another environment");
  std::vector<int> others;
  for (int rank = 0; rank < world.size(); ++rank) {
    if (ranks[static_cast<std::size_t>(rank)] != 0) {
      others.push_back(rank);
    }
  }
  if (world.rank() == 0 && !others.empty()) {
    note(
        fmt::format("rank {} computes in another environment than rank 0, as --allow-mixed says: the bytes depend on "
                    "how ranks are placed",
                    fmt::join(others, ", ")));
  }
}

}  // namespace gptqd::pipeline
