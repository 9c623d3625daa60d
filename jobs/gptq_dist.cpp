/// @file gptq-dist: chooses the subcommand.
#include <array>
#include <csignal>

#include "comm/world.hpp"
#include "jobs/commands.hpp"
#include "kernels/base/error.hpp"
#include "kernels/base/fault_point.hpp"
#include "kernels/base/launcher_rank.hpp"
#include "kernels/cpu/blas.hpp"
#include "version.hpp"

namespace {

using gptqd::jobs::Arguments;

constexpr std::string_view overview =
    R"(gptq-dist: quantizes transformers with GPTQ (arXiv:2210.17323) on any number of MPI ranks.

  mpirun -np 8 gptq-dist --model bloom-176b          4 bits, groups of 128, into ./bloom-176b-w4g128
  gptq-dist eval --model DIR --text FILE             perplexity of a float model or of an artifact
  gptq-dist plan --model bloom-176b                  seconds and memory on 1 to 64 GPUs, without running
  gptq-dist status WORK                              what a run has done, and whether it is alive
  gptq-dist merge WORK --out DIR                     the shards of a finished run into an artifact
  gptq-dist convert ARTIFACT --to FORMAT --out DIR   an artifact in another format, without loss
  gptq-dist verify ARTIFACT [--against SOURCE]       will engines load it, does it hold its source's weights
  gptq-dist tokenize --model DIR --text FILE         what the model's tokenizer makes of a text

  gptq-dist quantize --help                          all options (quantize is the default)
  gptq-dist plan --help, status --help, merge --help, eval --help, convert --help, verify --help, tokenize --help
  gptq-dist --version

A run that was interrupted goes on where it stopped when the same command is given again, with any number of ranks.
Exit codes: 0 done; 64 wrong usage; 65 bad input; 69 stopped before anything new was finished; 70 internal error or a
stalled rank; 74 I/O error; 75 stopped on a signal or for lack of time, with new blocks: run the same command again.
)";

struct Command {
  std::string_view name;
  int (*run)(const Arguments& arguments);
};
constexpr std::array commands{
    Command{"quantize", gptqd::jobs::quantize_command}, Command{"plan", gptqd::jobs::plan_command},
    Command{"status", gptqd::jobs::status_command},     Command{"merge", gptqd::jobs::merge_command},
    Command{"eval", gptqd::jobs::eval_command},         Command{"convert", gptqd::jobs::convert_command},
    Command{"verify", gptqd::jobs::verify_command},     Command{"tokenize", gptqd::jobs::tokenize_command}};

int run(Arguments arguments) {
  const std::string first = arguments.empty() ? "--help" : arguments.front();
  if (first == "--help" || first == "-h") {
    gptqd::jobs::print_once(std::string(overview));
    return 0;
  }
  if (first == "--version") {
    gptqd::jobs::print_once(fmt::format("gptq-dist {}\n", gptqd::version));
    return 0;
  }
  for (const auto& command : commands) {
    if (first == command.name) {
      arguments.erase(arguments.begin());
      return command.run(arguments);
    }
  }
  if (!first.starts_with("-")) {
    throw gptqd::Error(gptqd::ErrorKind::usage, fmt::format("there is no command \"{}\"; the commands are quantize, "
                                                            "plan, status, merge, eval, convert, verify, tokenize",
                                                            first));
  }
  return gptqd::jobs::quantize_command(arguments);
}

}  // namespace

int main(int argc, char** argv) {
  gptqd::choose_blas_kernels(argv);
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of the write, with a message
  try {
    if (const auto faults = gptqd::describe_faults(); !faults.empty()) {
      fmt::print(stderr, "gptq-dist: rank {}: GPTQ_DIST_FAULT: {}\n", gptqd::launcher_rank(), faults);
    }
    return run(Arguments(argv + 1, argv + argc));
  } catch (const gptqd::Error& error) {
    // Errors of a running job are reported by its World; what arrives here happened before, on every rank alike.
    if (gptqd::comm::launcher_rank() == 0) {
      fmt::print(stderr, "gptq-dist: {}\n", error.one_line());
    }
    return gptqd::exit_code(error.kind());
  } catch (const std::exception& error) {
    if (gptqd::comm::launcher_rank() == 0) {
      fmt::print(stderr, "gptq-dist: internal error: {}\n", error.what());
    }
    return gptqd::exit_code(gptqd::ErrorKind::internal);
  }
}
