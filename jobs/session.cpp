#include "jobs/session.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <span>
#include <thread>
#include <vector>

#include "jobs/console.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr std::chrono::milliseconds time_for_others_to_end{500};

/// Threads of one rank: its share of the CPUs that it may run on, which launchers leave to all ranks of a node (mpirun
/// --bind-to none; srun in a cgroup) or divide among them. Collective.
int thread_count(comm::World& world, int asked) {
  if (asked > 0) {
    return asked;
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) {
    return 1;
  }
  auto own = std::as_bytes(std::span(&set, 1));
  const auto host = std::as_bytes(std::span(world.host_name()));
  std::vector<std::byte> place(own.begin(), own.end());
  place.insert(place.end(), host.begin(), host.end());
  const auto places = world.group().all_gather_bytes(place, "CPUs of the ranks");
  const auto sharing = static_cast<int>(std::count(places.begin(), places.end(), place));
  const int threads = std::max(1, CPU_COUNT(&set) / sharing);
  const int online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (threads < online / world.local_size() && world.rank() == 0) {
    note(
        fmt::format("the launcher lets each rank use {} of {} CPUs; mpirun --bind-to none, srun --cpus-per-task={} and "
                    "the like give it more",
                    threads, online, online / world.local_size()));
  }
  return threads;
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
      "stall-seconds", po::value<double>()->default_value(20)->value_name("S"),
      "end the job when a rank is silent or makes no progress for so long");
  return options;
}

int run_session(const CommandLine& line, const std::function<void(comm::World& world, Backend& backend)>& body,
                const StopOptions& stop) {
  const int asked = line.get<int>("threads");
  if (asked < 0 || asked > 4096) {
    throw Error(ErrorKind::usage, fmt::format("--threads {}: expected 0 (automatic) to 4096", asked));
  }
  const auto& device = line.get<std::string>("device");
  if (device != "auto" && device != "cpu" && device != "cuda") {
    throw Error(ErrorKind::usage, fmt::format("--device {}: expected auto, cpu or cuda", device));
  }
  const auto world = comm::World::start({.stall_seconds = line.get<double>("stall-seconds"),
                                         .stop_on_signals = stop.on_signals,
                                         .deadline = stop.deadline});
  try {
    const bool on_gpu = device == "cuda" || (device == "auto" && every_rank_has_gpus(*world));
    const auto backend =
        on_gpu ? make_cuda_backend({.device = own_gpu(*world), .progress = &world->progress()})
               : make_cpu_backend({.threads = thread_count(*world, asked), .progress = &world->progress()});
    body(*world, *backend);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::stopped && error.kind() != ErrorKind::no_gain) {
      world->fail(error);
    }
    const bool speaks = world->rank() == 0;
    world->finish();
    if (!speaks) {
      return 0;
    }
    fmt::print(stderr, "gptq-dist: {}\n", error.one_line());
    // A launcher may kill the other ranks at the first exit code but 0 (srun -K, mpirun), and srun would report that
    // death instead of this code: one rank brings it, when the others have ended.
    std::this_thread::sleep_for(time_for_others_to_end);
    return exit_code(error.kind());
  } catch (const std::exception& error) {
    world->fail(to_error(error));
  }
  world->finish();
  return 0;
}

}  // namespace gptqd::jobs
