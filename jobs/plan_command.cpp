#include <algorithm>
#include <filesystem>
#include <limits>

#include "comm/world.hpp"
#include "io/json_file.hpp"
#include "io/model_lookup.hpp"
#include "jobs/commands.hpp"
#include "jobs/console.hpp"
#include "pipeline/cost_model.hpp"
#include "pipeline/source.hpp"
#include "pipeline/synthetic.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr const char* usage = R"(Usage: gptq-dist plan --model NAME|DIR [options]
       gptq-dist plan --measured REPORT.json... [--model NAME|DIR]

How long a quantization takes on GPUs, and how much memory a rank needs, at several numbers of ranks, without running
it. The rates are an H200's, or such that they fit the reports of runs on one rank (WORK/report.json). With reports: also
what the runs took, rank by rank, against what was predicted. Needs neither MPI nor a GPU.
)";

struct Machine {
  pipeline::MachineRates rates;
  pipeline::Calibration calibration;
};

/// A number of ranks with a plan: what it takes.
struct Prediction {
  pipeline::BlockCost cost;
  pipeline::RankMemory memory;
};

/// Of a run on a GPU with the defaults for what is not given.
pipeline::MemorySettings memory_settings(const pipeline::ModelSpec& model, int bits) {
  pipeline::MemorySettings settings{
      .kind = MemoryKind::cuda, .compute = model.dtype, .gram_tokens = gpu_pieces.gram_tokens};
  settings.spec.bits = bits;
  settings.spec.clip = gptq::default_clip(settings.spec.method, settings.spec.group_size);
  return settings;
}

pipeline::BlockCost predict(const pipeline::ModelSpec& model, const pipeline::Plan& plan, const Machine& machine,
                            int bits) {
  return machine.calibration.apply(pipeline::block_cost(model.blocks.front(), plan, machine.rates, bits));
}

pipeline::Plan plan_of(const pipeline::ModelSpec& model, const pipeline::MeasuredRun& run) {
  gptq::Partition partition = run.partition;
  partition.whole_columns = gpu_pieces.whole_columns;
  return pipeline::make_plan(model, {.ranks = run.ranks,
                                     .stages = run.stages,
                                     .samples = run.samples,
                                     .seqlen = run.seqlen,
                                     .micro_batch_tokens = run.micro_batch_samples * run.seqlen,
                                     .partition = partition,
                                     .memory = memory_settings(model, run.bits),
                                     .activations = run.activations});
}

pipeline::ModelSpec model_named(const std::string& name) {
  return pipeline::open_source(pipeline::is_synthetic(name) ? std::filesystem::path(name) : io::find_model(name)).model;
}

std::string stage_headings() {
  std::string line;
  for (const auto& stage : pipeline::block_stages) {
    line += fmt::format(" {:>7}", stage.name);
  }
  return line;
}

std::string stage_seconds(const pipeline::BlockCost& cost) {
  std::string line;
  for (const auto& stage : pipeline::block_stages) {
    line += fmt::format(" {:7.3f}", cost.*stage.seconds);
  }
  return line;
}

/// The run on one rank of the same model and settings, for speed-ups.
const pipeline::MeasuredRun* alone(const std::vector<pipeline::MeasuredRun>& runs, const pipeline::MeasuredRun& of) {
  const auto same = std::find_if(runs.begin(), runs.end(), [&](const pipeline::MeasuredRun& run) {
    return run.ranks == 1 && run.model == of.model && run.samples == of.samples && run.seqlen == of.seqlen &&
           run.partition.to_json() == of.partition.to_json();
  });
  return same == runs.end() ? nullptr : &*same;
}

void print_measured(const std::vector<pipeline::MeasuredRun>& runs, const std::vector<pipeline::ModelSpec>& models,
                    const Machine& machine) {
  fmt::print(
      "Measured: seconds a block, means over blocks and ranks; block is the slowest rank's, from block to block\n");
  fmt::print("{:32} {:>5} {:>6} {:>7}{} | {:>7} {:>10} | {:>9} {:>6} | {:>7} {:>7}\n", "model", "ranks", "tile",
             "block", stage_headings(), "speedup", "efficiency", "predicted", "error", "GB", "predict");
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto& run = runs[i];
    const auto plan = plan_of(models[i], run);
    const double predicted = predict(models[i], plan, machine, run.bits).total();
    const auto memory = plan.bytes_per_rank(models[i]);
    const auto* base = alone(runs, run);
    const double speedup = base == nullptr ? 0.0 : base->wall / run.wall;
    fmt::print("{:32} {:5} {:6} {:7.3f}{} | {:7} {:>10} | {:9.3f} {:+5.1f}% | {:7.2f} {:7.2f}\n", run.model, run.ranks,
               run.partition.row_tile, run.wall, stage_seconds(run.mean),
               base == nullptr ? std::string("-") : fmt::format("{:.2f}x", speedup),
               base == nullptr ? std::string("-") : fmt::format("{:.1f} %", 100 * speedup / run.ranks), predicted,
               100 * (predicted / run.wall - 1), static_cast<double>(run.peak_bytes) / 1e9,
               static_cast<double>(memory.most.device) / 1e9);
  }
  fmt::print(
      "\nMeasured, rank by rank: seconds a block. idle: its stream was empty; exposed: its stream stood still for\n"
      "transfers; transfers: time that some were under way, and the rate of their bytes meanwhile\n");
  fmt::print("{:32} {:>5} {:>4} {:>7} {:>7} {:>7} {:>9} {:>7} {:>7} {:>7}\n", "model", "ranks", "rank", "block", "idle",
             "exposed", "transfers", "GB/s", "load", "write");
  for (const auto& run : runs) {
    for (std::size_t r = 0; r < run.by_rank.size(); ++r) {
      const auto& rank = run.by_rank[r];
      fmt::print("{:32} {:5} {:4} {:7.3f} {:7.4f} {:7.4f} {:9.4f} {:7.1f} {:7.4f} {:7.4f}\n", run.model, run.ranks, r,
                 rank.wall, rank.idle, rank.exposed_transfers, rank.transfers,
                 rank.transfers > 0 ? rank.transfer_bytes / rank.transfers / 1e9 : 0.0, rank.load, rank.write);
    }
  }
}

/// What the ceilings of one GPU leave, beside what runs on one rank took.
void print_floors(const std::vector<pipeline::MeasuredRun>& runs, const std::vector<pipeline::ModelSpec>& models,
                  const pipeline::Ceilings& ceilings) {
  fmt::print(
      "\nRoofline: the arithmetic at this GPU's ceilings (bf16 {:.0f} TF/s, fp32 {:.1f} TF/s, copy {:.2f} TB/s), and "
      "its "
      "share of what was measured\n",
      ceilings.half_flops / 1e12, ceilings.float_flops / 1e12, ceilings.copy_bytes / 1e12);
  fmt::print("{:32} {:8} {:>7}{}\n", "model", "", "block", stage_headings());
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto& run = runs[i];
    if (run.ranks != 1) {
      continue;
    }
    const auto floor = pipeline::block_floor(models[i].blocks.front(), plan_of(models[i], run), ceilings);
    pipeline::BlockCost share;
    for (const auto& stage : pipeline::block_stages) {
      share.*stage.seconds = run.mean.*stage.seconds > 0 ? 100 * (floor.*stage.seconds) / (run.mean.*stage.seconds) : 0;
    }
    fmt::print("{:32} {:8} {:7.3f}{}\n", run.model, "measured", run.wall, stage_seconds(run.mean));
    fmt::print("{:32} {:8} {:7.3f}{}\n", "", "floor", floor.total(), stage_seconds(floor));
    fmt::print("{:32} {:8} {:7.0f}", "", "percent", 100 * floor.total() / run.wall);
    for (const auto& stage : pipeline::block_stages) {
      fmt::print(" {:7.0f}", share.*stage.seconds);
    }
    fmt::print("\n");
  }
}

void print_predictions(const std::string& name, const pipeline::ModelSpec& model, const pipeline::PlanRequest& request,
                       const std::vector<int>& ranks, const Machine& machine, int bits, double read_bytes) {
  const auto blocks = static_cast<double>(model.blocks.size());
  fmt::print("\n{}: {} blocks, {:.1f} M weights in linears, {} x {} tokens, {} bits{}\n", name, model.blocks.size(),
             static_cast<double>(model.parameters()) / 1e6, request.samples, request.seqlen, bits,
             machine.calibration.empty() ? "; rates of an NVIDIA H200" : "; rates fitted to the runs on one rank");
  fmt::print("{:>5} {:>7}{} {:>8} | {:>8} {:>7} {:>10} | {:>8} {:>8} {:>8}\n", "ranks", "block", stage_headings(),
             "exchange", "model", "speedup", "efficiency", "GB", "of cols²", "parked");
  double one = 0;
  for (const int count : ranks) {
    auto asked = request;
    asked.ranks = count;
    const auto plan = pipeline::make_plan(model, asked);
    const auto cost = predict(model, plan, machine, bits);
    const auto memory = plan.bytes_per_rank(model);
    if (one == 0) {
      asked.ranks = request.stages;
      one = predict(model, pipeline::make_plan(model, asked), machine, bits).total() * request.stages;
    }
    const double speedup = one / request.stages / cost.total();
    fmt::print("{:5} {:7.3f}{} {:8.3f} | {:>8} {:6.2f}x {:8.1f} % | {:8.2f} {:8.2f} {:8.2f}{}\n", count, cost.total(),
               stage_seconds(cost), cost.exchange, human_seconds(cost.total() * blocks), speedup,
               100 * speedup * request.stages / count, static_cast<double>(memory.most.device) / 1e9,
               static_cast<double>(memory.square) / 1e9, static_cast<double>(memory.most.host) / 1e9,
               plan.leaves_raised ? "  (more leaves: other bytes)" : "");
  }
  const auto model_bytes = static_cast<double>(model.parameters()) * static_cast<double>(size_of(model.dtype));
  fmt::print("Beside this, overlapped where it is shorter: {} to read at {:.1f} GB/s take {}\n",
             human_bytes(static_cast<std::int64_t>(model_bytes)), read_bytes / 1e9,
             human_seconds(model_bytes / read_bytes));
}

double positive(const CommandLine& line, const std::string& option) {
  const auto value = line.get<double>(option);
  if (!(value > 0)) {
    throw Error(ErrorKind::usage, fmt::format("--{} {}: expected a positive number", option, value));
  }
  return value;
}

std::int64_t positive_count(const CommandLine& line, const std::string& option) {
  const auto value = line.get<std::int64_t>(option);
  if (value <= 0) {
    throw Error(ErrorKind::usage, fmt::format("--{} {}: expected a positive number", option, value));
  }
  return value;
}

po::options_description plan_options() {
  constexpr pipeline::MachineRates rates;
  po::options_description options("Plan", 100, 50);
  options.add_options()("model", po::value<std::string>()->value_name("NAME|DIR"),
                        "as for quantize; synthetic:NAME for a known shape")(
      "measured", po::value<std::vector<std::string>>()->multitoken()->value_name("REPORT..."),
      "reports of runs, to fit the rates to and to compare with")(
      "ceilings", po::value<std::string>()->value_name("FILE"),
      "what gptqd_kernel_bench --json wrote: sets the least that the arithmetic can take beside --measured")(
      "ranks", po::value<std::vector<int>>()->multitoken()->value_name("N..."),
      "numbers of GPUs; default 1 2 4 8 16 64")("stages", po::value<std::int64_t>()->default_value(1)->value_name("N"),
                                                "as for quantize")(
      "samples", po::value<std::int64_t>()->default_value(128)->value_name("N"), "calibration windows")(
      "seqlen", po::value<std::int64_t>()->default_value(2048)->value_name("N"), "tokens a window")(
      "bits", po::value<std::int64_t>()->default_value(4)->value_name("N"), "bits a weight")(
      "hessian-leaves", po::value<std::int64_t>()->default_value(8)->value_name("N"), "as for quantize")(
      "panel-columns", po::value<std::int64_t>()->default_value(gpu_pieces.panel_columns)->value_name("N"),
      "as for quantize")("row-tile", po::value<std::int64_t>()->default_value(gpu_pieces.row_tile)->value_name("N"),
                         "as for quantize")(
      "link", po::value<double>()->default_value(rates.link_bytes / 1e9)->value_name("GB/s"),
      "between the GPUs of a node, one direction")(
      "node-link", po::value<double>()->default_value(rates.node_link_bytes / 1e9)->value_name("GB/s"),
      "between nodes, a GPU's share")("gpus-per-node",
                                      po::value<std::int64_t>()->default_value(rates.gpus_per_node)->value_name("N"),
                                      "GPUs that a node's own links join")(
      "activations", po::value<std::string>()->default_value("auto")->value_name("auto|resident|parked"),
      "as for quantize")("gpu-memory", po::value<double>()->default_value(80)->value_name("GB"),
                         "of a GPU: for --activations auto")(
      "read", po::value<double>()->default_value(2)->value_name("GB/s"), "rate at which weights are read");
  return options;
}

}  // namespace

int plan_command(const Arguments& arguments) {
  CommandLine line("plan", usage);
  line.add(plan_options());
  if (!line.parse(arguments)) {
    return 0;
  }
  if (!line.has("model") && !line.has("measured")) {
    throw Error(ErrorKind::usage, "give --model or --measured; see gptq-dist plan --help");
  }
  Machine machine;
  machine.rates.link_bytes = positive(line, "link") * 1e9;
  machine.rates.node_link_bytes = positive(line, "node-link") * 1e9;
  machine.rates.gpus_per_node = static_cast<int>(positive_count(line, "gpus-per-node"));
  std::vector<int> ranks{1, 2, 4, 8, 16, 64};
  if (line.has("ranks")) {
    ranks = line.get<std::vector<int>>("ranks");
    if (std::any_of(ranks.begin(), ranks.end(), [](int count) { return count < 1 || count > 65536; })) {
      throw Error(ErrorKind::usage, "--ranks: expected numbers from 1 to 65,536");
    }
  }
  pipeline::PlanRequest request{
      .stages = static_cast<int>(positive_count(line, "stages")),
      .samples = positive_count(line, "samples"),
      .seqlen = positive_count(line, "seqlen"),
      .partition = {.leaves = static_cast<int>(positive_count(line, "hessian-leaves")),
                    .panel_columns = positive_count(line, "panel-columns"),
                    .row_tile = positive_count(line, "row-tile"),
                    .whole_columns = gpu_pieces.whole_columns},
      .activations = pipeline::activations_from_name(line.get<std::string>("activations")),
      .available = pipeline::MemoryBytes{.device = static_cast<std::int64_t>(positive(line, "gpu-memory") * 1e9),
                                         .host = std::numeric_limits<std::int64_t>::max()}};
  if (comm::launcher_rank() != 0) {
    return 0;  // started under mpirun: one process is enough
  }
  std::vector<pipeline::MeasuredRun> runs;
  std::vector<pipeline::ModelSpec> models;
  if (line.has("measured")) {
    for (const auto& path : line.get<std::vector<std::string>>("measured")) {
      runs.push_back(pipeline::measured_run(io::read_json(path), path));
      models.push_back(model_named(runs.back().model));
    }
    for (std::size_t i = 0; i < runs.size(); ++i) {
      if (runs[i].ranks == 1) {
        machine.calibration.add(
            runs[i].mean,
            pipeline::block_cost(models[i].blocks.front(), plan_of(models[i], runs[i]), machine.rates, runs[i].bits));
      }
    }
    print_measured(runs, models, machine);
    if (line.has("ceilings")) {
      const auto& path = line.get<std::string>("ceilings");
      print_floors(runs, models, pipeline::ceilings_of(io::read_json(path), path));
    }
  }
  const int bits = static_cast<int>(positive_count(line, "bits"));
  const double read_bytes = positive(line, "read") * 1e9;
  if (line.has("model")) {
    const auto& name = line.get<std::string>("model");
    const auto model = model_named(name);
    request.memory = memory_settings(model, bits);
    print_predictions(name, model, request, ranks, machine, bits, read_bytes);
    return 0;
  }
  std::vector<std::string> seen;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (std::find(seen.begin(), seen.end(), runs[i].model) == seen.end()) {
      seen.push_back(runs[i].model);
      request.samples = runs[i].samples;
      request.seqlen = runs[i].seqlen;
      request.partition = runs[i].partition;
      request.memory = memory_settings(models[i], runs[i].bits);
      print_predictions(runs[i].model, models[i], request, ranks, machine, runs[i].bits, read_bytes);
    }
  }
  return 0;
}

}  // namespace gptqd::jobs
