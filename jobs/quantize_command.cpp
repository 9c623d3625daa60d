#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "io/model_lookup.hpp"
#include "jobs/artifact_options.hpp"
#include "jobs/commands.hpp"
#include "jobs/console.hpp"
#include "jobs/session.hpp"
#include "jobs/shipped_data.hpp"
#include "kernels/base/fault_point.hpp"
#include "pipeline/quantize_run.hpp"
#include "pipeline/synthetic.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr const char* usage = R"(Usage: mpirun -np N gptq-dist [quantize] --model NAME|DIR [options]

Quantizes the linear layers of a transformer to 2, 3, 4 or 8 bits with GPTQ and writes a checkpoint that inference
engines load. The defaults are the best choice for most: 4 bits, groups of 128, symmetric, static act-order.
Give a calibration text of the kind the model will see; 128 samples of 2,048 tokens are enough.
Run the same command again after an interruption: finished blocks are kept. SIGUSR1 asks for an orderly stop.
)";

po::options_description model_options() {
  po::options_description options("Model and data", 100, 50);
  options.add_options()(
      "model", po::value<std::string>()->value_name("NAME|DIR"),
      "Hugging Face folder, or a name in $GPTQ_DIST_MODELS or the Hugging Face cache; or synthetic:NAME[:blocks=N]"
      "[:vocab=V], a known shape with generated weights, to measure (ends with the shards)")(
      "out", po::value<std::string>()->value_name("DIR"),
      "where the artifact goes; default ./NAME-w4g128 (bits and group size)")(
      "work", po::value<std::string>()->value_name("DIR"), "where shards and checkpoint go; default OUT.work")(
      "calibration", po::value<std::vector<std::string>>()->multitoken()->value_name("FILE|NAME..."),
      "text, JSON lines (.jsonl, .json), both also as .gz; token ids (.safetensors, .npy); or c4, wikitext2, ptb, "
      "whose "
      "files are looked for in $GPTQ_DIST_DATA. Several share the windows. Default: the text that ships with the "
      "program")("samples", po::value<std::int64_t>()->value_name("N"), "calibration windows; default 128")(
      "seqlen", po::value<std::int64_t>()->value_name("N"),
      "tokens a window; default 2048 or the model's maximum; a token file's own length")(
      "seed", po::value<std::uint64_t>()->default_value(0)->value_name("N"), "of the choice of windows")(
      "sampling", po::value<std::string>()->default_value("random")->value_name("random|sequential"),
      "windows at random, as the published code draws them; or from the beginning, without overlap")(
      "documents", po::value<std::string>()->value_name("packed|separate"),
      "packed: one stream of the documents' tokens; separate: a window lies in one document, short ones are left out. "
      "Default: separate for c4 by name, else packed")(
      "report", po::value<std::string>()->value_name("FILE"),
      "write the run's account (layers, losses, seconds) as JSON; WORK/report.json is always written")(
      "no-merge", po::bool_switch(), "end with the shards; gptq-dist merge WORK makes the artifact later");
  return options;
}

po::options_description restart_options() {
  po::options_description options("Interruptions", 100, 50);
  options.add_options()("restart", po::value<std::string>()->default_value("continue")->value_name("continue|fresh"),
                        "continue: keep the finished blocks of an interrupted run; fresh: discard them")(
      "checkpoint-activations", po::value<std::string>()->value_name("every=N"),
      "write the hidden states to WORK/activations after every N blocks, beside the work: a late restart then replays "
      "at "
      "most N blocks. Two generations are kept")(
      "time-margin", po::value<double>()->value_name("SECONDS"),
      "where the job's end is known: stop by itself, with exit code 75, when the next block would not be finished so "
      "long before; at half of it the job ends at once. Default 60, at most a tenth of the job's time")(
      "job-end", po::value<std::int64_t>()->value_name("UNIX-TIME"),
      "when the job ends, in seconds since 1970; default $SLURM_JOB_END_TIME");
  return options;
}

po::options_description quantizer_options() {
  po::options_description options("Quantization", 100, 50);
  options.add_options()("bits", po::value<int>()->default_value(4)->value_name("2|3|4|8"), "bits a weight")(
      "group-size", po::value<std::int64_t>()->default_value(128)->value_name("N"),
      "columns that share a scale; -1: a whole row")("sym", po::bool_switch(),
                                                     "symmetric grids (default at 4 and 8 bits)")(
      "asym", po::bool_switch(), "asymmetric grids, with a zero point (default at 2 and 3 bits)")(
      "act-order", po::value<std::string>()->default_value("static")->value_name("none|static|dynamic"),
      "order of columns: natural; by activation, groups fixed beforehand; by activation, groups along that order "
      "(g_idx)")(
      "clip", po::value<std::string>()->value_name("none|mse|hessian"),
      "how a group's range is chosen: as it is; least error of the weights; least error that the Hessian sees "
      "(default where it can be had: not for rtn and rows as groups, which take mse)")(
      "method", po::value<std::string>()->default_value("gptq")->value_name("gptq|rtn|obq"),
      "GPTQ; round to nearest; greedy OBQ (up to 1,024 columns)")(
      "damping", po::value<double>()->default_value(0.01)->value_name("L"),
      "added to H's diagonal, relative to its mean")(
      "true-sequential", po::bool_switch(),
      "quantize a block's groups one after another, each seeing the ones before (default)")(
      "no-true-sequential", po::bool_switch(), "all groups of a block see the float block")(
      "propagate", po::value<std::string>()->default_value("quantized")->value_name("quantized|float"),
      "whose activations Hessians are made from: the model's as quantized so far; or the float model's, for which no "
      "block waits for another (with --stages N the stages then work at the same time)")(
      "reference", po::bool_switch(),
      "make every choice as the published code does: clip none, act-order none, its treatment of dead columns; options "
      "given explicitly still apply")("max-fallbacks", po::value<std::int64_t>()->default_value(0)->value_name("N"),
                                      "fail when more linears than this cannot be factored and fall back to rounding");
  return options;
}

po::options_description layer_options() {
  using Texts = std::vector<std::string>;
  po::options_description options("Linears with other settings (in the order applied; what a later one says holds)",
                                  100, 50);
  options.add_options()("first-blocks", po::value<Texts>()->composing()->value_name("N=bits:8,group:64"),
                        "other bits, group size or sym:true|false for the first N blocks; N=skip leaves them as they "
                        "are")("last-blocks", po::value<Texts>()->composing()->value_name("N=bits:8,group:64"),
                               "the same for the last N blocks")(
      "override", po::value<Texts>()->composing()->value_name("REGEX=bits:8,group:64"),
      "the same for linears whose name the regex (PCRE2) is found in: 'down_proj=bits:8'; may be given again. q, k "
      "and v, and gate and up, need one setting")("skip", po::value<Texts>()->composing()->value_name("REGEX"),
                                                  "leave such linears as they are; may be given again");
  return options;
}

po::options_description expert_options() {
  po::options_description options("Distribution and reproducibility (those marked * decide the last bits)", 100, 50);
  options.add_options()("stages", po::value<int>()->default_value(1)->value_name("N"),
                        "split the blocks over N groups of ranks; 1 keeps every rank busy")(
      "hessian-leaves", po::value<int>()->default_value(8)->value_name("N"),
      "* leaves of the summation tree, a power of two, at least the ranks of a stage")(
      "panel-columns", po::value<std::int64_t>()->value_name("N"),
      "* width of H's column panels; default 768 on CPUs, 2048 on GPUs")(
      "row-tile", po::value<std::int64_t>()->value_name("N"),
      "* rows of W solved together; default 64 on CPUs, 192 on GPUs")(
      "micro-batch-tokens", po::value<std::int64_t>()->default_value(4096)->value_name("N"),
      "* tokens computed together")("solver-precision",
                                    po::value<std::string>()->default_value("f32")->value_name("f32|f64"),
                                    "* arithmetic of factorization and solve")(
      "activations", po::value<std::string>()->default_value("auto")->value_name("auto|resident|parked"),
      "where the inputs of linears live for all calibration tokens: on the device; or in page-locked host memory, "
      "brought to the device beside the work. auto: parked where they do not fit on the device. Results are the same")(
      "allow-mixed", po::bool_switch(), "continue shards made by another version of the program, backend or BLAS");
  return options;
}

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::usage, message); }

template <class T>
T positive(const CommandLine& line, const std::string& option) {
  const T value = line.get<T>(option);
  if (value <= 0) {
    refuse(fmt::format("--{} {}: expected a positive number", option, value));
  }
  return value;
}

/// The value of two opposite flags.
bool choose(const CommandLine& line, const std::string& yes, const std::string& no, bool otherwise) {
  if (line.flag(yes) && line.flag(no)) {
    refuse(fmt::format("--{} and --{} exclude one another", yes, no));
  }
  return line.flag(yes) || (otherwise && !line.flag(no));
}

gptq::QuantSpec quant_spec(const CommandLine& line) {
  gptq::QuantSpec spec;
  spec.bits = line.get<int>("bits");
  spec.group_size = line.get<std::int64_t>("group-size");
  spec.symmetric = choose(line, "sym", "asym", spec.bits >= 4);
  spec.reference = line.flag("reference");
  const auto word = [&](const std::string& option, const char* published) {
    return spec.reference && !line.given(option) ? std::string(published) : line.get<std::string>(option);
  };
  spec.act_order = gptq::act_order_from_name(word("act-order", "none"));
  spec.method = gptq::method_from_name(line.get<std::string>("method"));
  spec.clip = line.has("clip") ? gptq::clip_from_name(line.get<std::string>("clip"))
              : spec.reference ? Clip::none
                               : gptq::default_clip(spec.method, spec.group_size);
  spec.damping = line.get<double>("damping");
  const auto& precision = line.get<std::string>("solver-precision");
  if (precision != "f32" && precision != "f64") {
    refuse(fmt::format("--solver-precision {}: expected f32 or f64", precision));
  }
  spec.solver = precision == "f64" ? DType::f64 : DType::f32;
  gptq::validate(spec);
  return spec;
}

std::vector<pipeline::LayerRule> layer_rules(const CommandLine& line) {
  struct Option {
    const char* name;
    pipeline::LayerRule (*parse)(const std::string& text);
  };
  constexpr std::array options{Option{"first-blocks", pipeline::parse_first_blocks},
                               Option{"last-blocks", pipeline::parse_last_blocks},
                               Option{"override", pipeline::parse_override}, Option{"skip", pipeline::parse_skip}};
  std::vector<pipeline::LayerRule> rules;
  for (const auto& option : options) {
    if (line.has(option.name)) {
      for (const auto& text : line.get<std::vector<std::string>>(option.name)) {
        rules.push_back(option.parse(text));
      }
    }
  }
  return rules;
}

gptq::Partition partition(const CommandLine& line) {
  gptq::Partition cut{.leaves = positive<int>(line, "hessian-leaves"), .panel_columns = 0, .row_tile = 0};
  for (const auto& [option, target] :
       {std::pair("panel-columns", &cut.panel_columns), std::pair("row-tile", &cut.row_tile)}) {
    if (line.has(option)) {
      *target = positive<std::int64_t>(line, option);
    }
  }
  if ((cut.leaves & (cut.leaves - 1)) != 0 || cut.leaves > 65536) {
    refuse(fmt::format("--hessian-leaves {}: expected a power of two up to 65,536", cut.leaves));
  }
  return cut;
}

std::filesystem::path default_out(const std::string& model, const gptq::QuantSpec& spec) {
  // "org/name", "dir/name/" and "name" alike.
  auto name = std::filesystem::path(model).lexically_normal();
  if (!name.has_filename()) {
    name = name.parent_path();
  }
  const std::string group = spec.group_size < 0 ? "channel" : fmt::format("g{}", spec.group_size);
  std::string base = name.filename().string();
  std::replace(base.begin(), base.end(), ':', '-');  // of a synthetic model
  return fmt::format("{}-w{}{}", base, spec.bits, group);
}

/// The same option names the work folder when OUT does: "out.work" beside "out".
std::filesystem::path default_work(const std::filesystem::path& out) {
  auto name = out.lexically_normal();
  if (!name.has_filename()) {
    name = name.parent_path();
  }
  name += ".work";
  return name;
}

pipeline::CalibrationRequest calibration_request(const CommandLine& line) {
  pipeline::CalibrationRequest request;
  if (line.has("calibration")) {
    for (const auto& word : line.get<std::vector<std::string>>("calibration")) {
      request.sources.push_back(io::TextSource::from_word(word));
    }
  } else if (!pipeline::is_synthetic(line.get<std::string>("model"))) {
    request.sources.push_back({.file = shipped_calibration_text()});
  }
  for (const auto& [option, target] : {std::pair("samples", &request.samples), std::pair("seqlen", &request.seqlen)}) {
    if (line.has(option)) {
      *target = positive<std::int64_t>(line, option);
    }
  }
  request.seed = line.get<std::uint64_t>("seed");
  request.sampling = io::sampling_from_name(line.get<std::string>("sampling"));
  if (line.has("documents")) {
    request.documents = io::documents_from_name(line.get<std::string>("documents"));
  }
  return request;
}

/// N of "every=N".
std::int64_t snapshot_interval(const std::string& text) {
  constexpr std::string_view every = "every=";
  const std::string number = text.starts_with(every) ? text.substr(every.size()) : "";
  std::int64_t blocks = 0;
  const auto* end = number.data() + number.size();
  if (const auto [stop, error] = std::from_chars(number.data(), end, blocks);
      error != std::errc() || stop != end || blocks < 1) {
    refuse(fmt::format("--checkpoint-activations {}: expected every=N with N at least 1", text));
  }
  return blocks;
}

pipeline::QuantizeConfig quantize_config(const CommandLine& line) {
  if (!line.has("model")) {
    refuse("--model is missing: name a Hugging Face folder or a model; see gptq-dist quantize --help");
  }
  pipeline::QuantizeConfig config;
  config.spec = quant_spec(line);
  config.layer_rules = layer_rules(line);
  config.choose_clip = !line.has("clip") && !config.spec.reference;
  config.partition = partition(line);
  const auto& model = line.get<std::string>("model");
  const bool synthetic = pipeline::is_synthetic(model);
  config.model = synthetic ? std::filesystem::path(model) : io::find_model(model);
  config.merge = !synthetic && !line.flag("no-merge");
  config.out = line.has("out") ? std::filesystem::path(line.get<std::string>("out"))
                               : default_out(line.get<std::string>("model"), config.spec);
  config.work = line.has("work") ? std::filesystem::path(line.get<std::string>("work")) : default_work(config.out);
  if (line.has("report")) {
    config.report = line.get<std::string>("report");
  }
  config.calibration = calibration_request(line);
  config.micro_batch_tokens = positive<std::int64_t>(line, "micro-batch-tokens");
  config.activations = pipeline::activations_from_name(line.get<std::string>("activations"));
  config.true_sequential = choose(line, "true-sequential", "no-true-sequential", true);
  const auto& propagate = line.get<std::string>("propagate");
  if (propagate != "quantized" && propagate != "float") {
    refuse(fmt::format("--propagate {}: expected quantized or float", propagate));
  }
  config.propagation = propagate == "float" ? pipeline::Propagation::unquantized : pipeline::Propagation::quantized;
  if (propagate == "float" && line.flag("true-sequential")) {
    refuse("--propagate float and --true-sequential exclude one another: no group sees the quantized ones before it");
  }
  config.stages = positive<int>(line, "stages");
  config.max_fallbacks = line.get<std::int64_t>("max-fallbacks");
  config.allow_mixed = line.flag("allow-mixed");
  const auto& restart = line.get<std::string>("restart");
  if (restart != "continue" && restart != "fresh") {
    refuse(fmt::format("--restart {}: expected continue or fresh", restart));
  }
  config.restart = restart == "fresh" ? pipeline::RestartMode::fresh : pipeline::RestartMode::go_on;
  if (line.has("checkpoint-activations")) {
    config.snapshot_every = snapshot_interval(line.get<std::string>("checkpoint-activations"));
  }
  config.format = artifact_format(line);
  config.max_shard_bytes = max_shard_bytes(line);
  return config;
}

/// When the run has to be done, and when it is ended whatever it is doing.
struct TimeLimits {
  std::optional<std::chrono::steady_clock::time_point> finish_by;
  std::optional<std::chrono::steady_clock::time_point> deadline;
};

/// The wall clock is read once, at the start: it may jump later.
TimeLimits time_limits(const CommandLine& line) {
  const char* variable = std::getenv("SLURM_JOB_END_TIME");
  std::int64_t end = 0;
  if (line.has("job-end")) {
    end = line.get<std::int64_t>("job-end");
  } else if (variable == nullptr ||
             std::from_chars(variable, variable + std::strlen(variable), end).ec != std::errc() || end <= 0) {
    if (line.has("time-margin")) {
      refuse("--time-margin: the job's end is not known; give it with --job-end (outside of SLURM)");
    }
    return {};
  }
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  constexpr double years = 3e8;  // far enough for a job without an end, and no clock overflows
  const double left = std::min(static_cast<double>(end) - now.count(), years);
  constexpr double usual_margin = 60;
  const double margin = line.has("time-margin") ? line.get<double>("time-margin") : std::min(usual_margin, left / 10);
  if (!(left > 0)) {
    refuse(fmt::format("the job's end ({}, from {}) has passed; give the time that it really ends with --job-end", end,
                       line.has("job-end") ? "--job-end" : "$SLURM_JOB_END_TIME"));
  }
  if (!(margin >= 0 && margin < left)) {
    refuse(
        fmt::format("--time-margin {}: expected less than the {} that the job has left", margin, human_seconds(left)));
  }
  const auto after = [start = std::chrono::steady_clock::now()](double seconds) {
    return start +
           std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
  };
  return {.finish_by = after(left - margin), .deadline = after(left - margin / 2)};
}

/// On a terminal `--restart fresh` has the folder's name typed in: what it discards may have taken days.
void confirm_discarding(const pipeline::QuantizeConfig& config) {
  if (config.restart != pipeline::RestartMode::fresh || isatty(STDIN_FILENO) == 0 || launcher_rank() != 0 ||
      !std::filesystem::exists(config.work)) {
    return;
  }
  auto folder = std::filesystem::absolute(config.work).lexically_normal();
  if (!folder.has_filename()) {
    folder = folder.parent_path();
  }
  fmt::print(stderr, "--restart fresh discards the finished blocks in {}\ntype the folder's name ({}) to go on: ",
             folder.string(), folder.filename().string());
  std::string answer;
  std::getline(std::cin, answer);
  if (answer != folder.filename().string()) {
    refuse(fmt::format("--restart fresh: \"{}\" is not the folder's name; nothing was discarded", answer));
  }
}

/// What ends MPI in order and becomes the exit code.
Error stopped_error(const pipeline::QuantizeSummary& summary, bool merge) {
  const auto done = summary.blocks_found + summary.blocks_computed;
  const std::string state = done == summary.blocks
                                ? fmt::format("all blocks are finished{}", merge ? ", the merge is left" : "")
                                : fmt::format("{} of {} blocks are finished", done, summary.blocks);
  return Error(
      summary.blocks_computed > 0 ? ErrorKind::stopped : ErrorKind::no_gain,
      fmt::format("stopped by {}: {}; {}", *summary.stopped, comm::describe_saved(summary.blocks_computed), state));
}

void print_summary(const pipeline::QuantizeSummary& summary, const pipeline::QuantizeConfig& config) {
  const auto out = std::filesystem::absolute(summary.out).string();
  if (summary.already_complete) {
    fmt::print("{} is complete already: the same command made it\n", out);
    return;
  }
  fmt::print("{} bits, {} -> {}, {} blocks computed, {} found, {}\n", config.spec.bits,
             human_bytes(summary.source_bytes), config.merge ? human_bytes(summary.artifact_bytes) : "shards",
             summary.blocks_computed, summary.blocks_found, human_seconds(summary.seconds));
  if (summary.loss_ratio) {
    fmt::print("layer losses: {:.3f} of round-to-nearest's on the same kind of grid (geometric mean)\n",
               *summary.loss_ratio);
  }
  fmt::print("{} {}\nreport:   {}\n", config.merge ? "artifact:" : "shards:  ",
             config.merge ? out : std::filesystem::absolute(config.work).string(),
             std::filesystem::absolute(config.work / "report.json").string());
}

}  // namespace

int quantize_command(const Arguments& arguments) {
  CommandLine line("quantize", usage);
  line.add(model_options());
  line.add(artifact_options());
  line.add(restart_options());
  line.add(quantizer_options());
  line.add(layer_options());
  line.add(expert_options());
  line.add(machine_options());
  if (!line.parse(arguments)) {
    return 0;
  }
  auto config = quantize_config(line);
  const auto limits = time_limits(line);
  config.finish_by = limits.finish_by;
  confirm_discarding(config);
  const auto body = [&](comm::World& world, Backend& backend) {
    fault_point("start");
    const auto observer = console_observer();
    if (world.rank() == 0 && !config.calibration.sources.empty() && !line.has("calibration") &&
        config.spec.method != gptq::Method::rtn) {
      note(
          "calibrating with the general English text that ships with the program; a text like your own (--calibration "
          "FILE) gives better results");
    }
    const auto summary = pipeline::run_quantize(world, backend, config, observer);
    if (summary.stopped) {
      throw stopped_error(summary, config.merge);
    }
    if (world.rank() == 0) {
      print_summary(summary, config);
    }
  };
  return run_session(line, body, {.on_signals = true, .deadline = limits.deadline});
}

}  // namespace gptqd::jobs
