#include "jobs/session.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>

#include "jobs/console.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

/// Threads of one rank: its share of the node, or what the launcher bound it to.
int thread_count(const comm::World& world, int asked) {
  if (asked > 0) {
    return asked;
  }
  const int allowed = allowed_cpus();
  const int online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (allowed < online && allowed < online / world.local_size() && world.rank() == 0) {
    note(fmt::format("the launcher lets each rank use {} of {} CPUs; mpirun --bind-to none gives it {}", allowed,
                     online, online / world.local_size()));
  }
  return allowed < online ? allowed : std::max(1, online / world.local_size());
}

/// The GPUs that this rank sees, in turn over the ranks of the node: all of them, or those that its launcher left it
/// (SLURM's --gpus-per-task). Ranks that meet on one are told so by their communicator.
int own_gpu(const comm::World& world) { return world.local_rank() % std::max(1, cuda_device_count()); }

/// The same answer on every rank: ranks on different devices could not exchange anything.
bool every_rank_has_gpus(comm::World& world) {
  return world.group().all_max(cuda_device_count() > 0 ? 0 : 1, "ranks without a GPU") == 0;
}

}  // namespace

int allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

po::options_description machine_options() {
  po::options_description options("Machine", 100, 50);
  options.add_options()("threads", po::value<int>()->default_value(0)->value_name("N"),
                        "CPU threads of each rank; 0: its share of the node. Results do not depend on it")(
      "device", po::value<std::string>()->default_value("auto")->value_name("auto|cpu|cuda"),
      "where to compute; auto: on GPUs where there are some and the build knows them")(
      "stall-seconds", po::value<double>()->default_value(30)->value_name("S"),
      "end the job when a rank is silent or makes no progress for so long");
  return options;
}

int run_session(const CommandLine& line, const std::function<void(comm::World& world, Backend& backend)>& body) {
  const int asked = line.get<int>("threads");
  if (asked < 0 || asked > 4096) {
    throw Error(ErrorKind::usage, fmt::format("--threads {}: expected 0 (automatic) to 4096", asked));
  }
  const auto& device = line.get<std::string>("device");
  if (device != "auto" && device != "cpu" && device != "cuda") {
    throw Error(ErrorKind::usage, fmt::format("--device {}: expected auto, cpu or cuda", device));
  }
  const auto world = comm::World::start({.stall_seconds = line.get<double>("stall-seconds")});
  try {
    const bool on_gpu = device == "cuda" || (device == "auto" && every_rank_has_gpus(*world));
    const auto backend =
        on_gpu ? make_cuda_backend({.device = own_gpu(*world), .progress = &world->progress()})
               : make_cpu_backend({.threads = thread_count(*world, asked), .progress = &world->progress()});
    body(*world, *backend);
  } catch (const Error& error) {
    world->fail(error);
  } catch (const std::bad_alloc&) {
    world->fail(
        Error(ErrorKind::internal, "out of memory; use more ranks, fewer --samples, or a machine with more memory"));
  } catch (const std::exception& error) {
    world->fail(Error(ErrorKind::internal, error.what()));
  }
  world->finish();
  return 0;
}

}  // namespace gptqd::jobs
