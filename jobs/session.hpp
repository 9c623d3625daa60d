#pragma once
/// @file What the commands that compute have in common: the world, the backend, and how errors end a job.
#include <boost/program_options.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "comm/world.hpp"
#include "jobs/command_line.hpp"
#include "kernels/backend.hpp"

namespace gptqd::jobs {

/// CPUs that this process may run on.
int allowed_cpus();

/// --threads, --device, --stall-seconds.
boost::program_options::options_description machine_options();

/// How a command can be stopped before its end.
struct StopOptions {
  bool on_signals = false;  ///< see comm::World; otherwise signals end the process as always
  std::optional<std::chrono::steady_clock::time_point> deadline = std::nullopt;
};

/// Starts MPI and the backend, runs `body` on every rank, and ends MPI. An Error ends the whole job with one message;
/// one of the kinds `stopped` and `no_gain`, which all ranks throw, ends MPI in order.
/// @return the exit code
int run_session(const CommandLine& line, const std::function<void(comm::World& world, Backend& backend)>& body,
                const StopOptions& stop = {});

}  // namespace gptqd::jobs
