#include <mpi.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <thread>

#include "comm/job_state.hpp"
#include "comm/mpi/mpi_group.hpp"
#include "comm/mpi/watchdog.hpp"
#include "comm/stall_judge.hpp"
#include "comm/world.hpp"
#include "kernels/base/fault_point.hpp"

namespace gptqd::comm {

namespace {

constexpr double shortest_stall_seconds = 0.5;

/// The number in a variable of the environment, if there is one.
std::optional<int> number_in(const char* variable) {
  const char* text = std::getenv(variable);
  int number = 0;
  if (text == nullptr || std::from_chars(text, text + std::strlen(text), number).ec != std::errc()) {
    return std::nullopt;
  }
  return number;
}

/// A launcher that started several tasks which MPI does not bring together: each would run the whole job.
void refuse_tasks_apart() {
  const auto refuse = [](int tasks, std::string_view launcher, std::string_view fix) {
    throw Error(ErrorKind::usage,
                fmt::format("starting MPI: {} started {} tasks, but each of them sees a world of 1 rank and would run "
                            "the whole job; {}",
                            launcher, tasks, fix));
  };
  // Where Open MPI's own launcher speaks, it knows; its daemons may be tasks of SLURM.
  if (const auto ranks = number_in("OMPI_COMM_WORLD_SIZE")) {
    if (*ranks > 1) {
      refuse(*ranks, "mpirun",
             "it belongs to another Open MPI than the one this program was built with: `which mpirun` and `ldd "
             "gptq-dist` have to name the same installation");
    }
    return;
  }
  if (const auto tasks = number_in("SLURM_STEP_NUM_TASKS").value_or(1); tasks > 1) {
    refuse(tasks, "SLURM",
           "start with `srun --mpi=pmix` (`srun --mpi=list` shows what this cluster has), or with mpirun");
  }
  if (const auto tasks = number_in("PMI_SIZE").value_or(1); tasks > 1) {
    refuse(tasks, "the mpiexec of another MPI (MPICH, Intel MPI)",
           "start with the mpirun of the Open MPI that this program was built with");
  }
}

/// Nothing says to which MPI job this process belongs. Below srun, MPI_Init of Open MPI then ends the process with a
/// text about building Open MPI anew.
bool no_launcher_knows_mpi() {
  constexpr std::array names{"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
  return std::all_of(names.begin(), names.end(), [](const char* name) { return std::getenv(name) == nullptr; });
}

MPI_Comm duplicate_of_world() {
  MPI_Comm comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "starting MPI");
  return comm;
}

/// MPI from MPI_Init_thread on; ends it again unless the World's own finish() did.
class Library {
 public:
  Library() {
    int initialized = 0;
    MPI_Initialized(&initialized);
    if (initialized != 0) {
      throw Error(ErrorKind::usage, "starting MPI: it can be started once in a process, and was");
    }
    if (no_launcher_knows_mpi()) {
      refuse_tasks_apart();
    }
    int provided = MPI_THREAD_SINGLE;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "starting MPI");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    try {
      check(provided, size);
    } catch (...) {
      MPI_Finalize();
      throw;
    }
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0) {
      MPI_Finalize();
    }
  }

 private:
  static void check(int provided, int size) {
    if (provided < MPI_THREAD_MULTIPLE) {
      throw Error(ErrorKind::usage,
                  "starting MPI: this MPI library does not give MPI_THREAD_MULTIPLE, which the watchdog needs; use an "
                  "Open MPI built with thread support (4.1 and newer are)");
    }
    if (size == 1) {
      refuse_tasks_apart();
    }
  }
};

}  // namespace

/// A rank with so many cores keeps one awake for a while: on GPUs a block has dozens of short waits, and a sleep ends
/// 50 us and more behind what it waits for.
constexpr unsigned int cores_for_polling = 4;
constexpr std::chrono::milliseconds spare_spin{2};

class World::Impl {
 public:
  explicit Impl(const WorldOptions& options)
      : signals_(options.stop_on_signals ? std::make_unique<StopSignals>() : nullptr),
        job_(std::make_shared<JobState>()),
        watchdog_(job_, duplicate_of_world(), options.stall_seconds, options.deadline),
        group_(std::make_unique<MpiGroup>(job_, duplicate_of_world())) {
    MPI_Comm node = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, group_->rank(), MPI_INFO_NULL, &node),
              "starting MPI");
    const CommHandle node_handle(job_, node);
    local_rank_ = node_handle.rank();
    local_size_ = node_handle.size();
    if (std::thread::hardware_concurrency() >= cores_for_polling * static_cast<unsigned int>(local_size_)) {
      job_->set_least_spin(spare_spin);
    }
    char name[MPI_MAX_PROCESSOR_NAME] = "";
    int length = 0;
    check_mpi(MPI_Get_processor_name(name, &length), "starting MPI");
    rank_ = group_->rank();
    size_ = group_->size();
    host_name_.assign(name, static_cast<std::size_t>(length));
    if (signals_) {
      signals_->listen_to_all();  // from here on the watchdog ends the job
    }
  }

  void finish() {
    if (job_->closed()) {
      return;
    }
    group_->barrier("the end of the job");
    watchdog_.leave();
    group_.reset();
    job_->set_closed();
    fault_point("end");
    watchdog_.end(MPI_Finalize);
  }

  [[noreturn]] void fail(const Error& error) {
    const auto activity = job_->activity();
    const auto text = error.one_line();
    const bool known = activity.empty() || text.find(activity) != std::string::npos;
    watchdog_.end_job(exit_code(error.kind()), fmt::format("gptq-dist: rank {}: {}{}", rank_, text,
                                                           known ? std::string() : in_parentheses(activity)));
  }

  std::unique_ptr<StopSignals> signals_;
  Library library_;
  std::shared_ptr<JobState> job_;
  Watchdog watchdog_;
  std::unique_ptr<MpiGroup> group_;
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  std::string host_name_;
  int exceptions_at_start_ = std::uncaught_exceptions();
};

std::unique_ptr<World> World::start(const WorldOptions& options) {
  if (!(options.stall_seconds >= shortest_stall_seconds) || !std::isfinite(options.stall_seconds)) {
    throw Error(ErrorKind::usage, fmt::format("--stall-seconds: expected a number of at least {}, got {}",
                                              shortest_stall_seconds, options.stall_seconds));
  }
  return std::unique_ptr<World>(new World(std::make_unique<Impl>(options)));
}

World::World(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

World::~World() {
  try {
    if (!impl_->job_->closed() && std::uncaught_exceptions() > impl_->exceptions_at_start_) {
      throw Error(ErrorKind::internal, "an exception ended the run of this rank; its text was not passed on");
    }
    finish();
  } catch (const Error& error) {
    fail(error);
  }
}

int World::rank() const { return impl_->rank_; }
int World::size() const { return impl_->size_; }
int World::local_rank() const { return impl_->local_rank_; }
int World::local_size() const { return impl_->local_size_; }
const std::string& World::host_name() const { return impl_->host_name_; }
Group& World::group() { return *impl_->group_; }
Progress& World::progress() { return impl_->job_->progress(); }
void World::set_activity(std::string activity) { impl_->job_->set_activity(std::move(activity)); }
std::string World::activity() const { return impl_->job_->activity(); }
bool World::stop_requested() const { return impl_->job_->stop_request().level != StopLevel::none; }
std::string World::stop_cause() const { return impl_->job_->stop_request().cause; }
void World::request_stop(const std::string& cause) {
  impl_->job_->ask_to_stop({.level = StopLevel::orderly, .cause = cause});
}
void World::count_saved() { impl_->job_->count_saved(); }
LongHostStep World::long_host_step(std::string_view what) { return LongHostStep(impl_->job_, what); }
void World::fail(const Error& error) { impl_->fail(error); }
void World::finish() { impl_->finish(); }

}  // namespace gptqd::comm
