#pragma once
/// @file What the commands that compute have in common: the world, the backend, and how errors end a job.
#include <boost/program_options.hpp>
#include <functional>
#include <memory>

#include "comm/world.hpp"
#include "jobs/command_line.hpp"
#include "kernels/backend.hpp"

namespace gptqd::jobs {

/// CPUs that this process may run on.
int allowed_cpus();

/// --threads, --device, --stall-seconds.
boost::program_options::options_description machine_options();

/// Starts MPI and the backend, runs `body` on every rank, and ends MPI. An Error ends the whole job with one message.
/// @return the exit code
int run_session(const CommandLine& line, const std::function<void(comm::World& world, Backend& backend)>& body);

}  // namespace gptqd::jobs
