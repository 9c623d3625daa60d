#include <nlohmann/json.hpp>

#include "io/atomic_file.hpp"
#include "io/model_lookup.hpp"
#include "jobs/commands.hpp"
#include "jobs/console.hpp"
#include "jobs/session.hpp"
#include "pipeline/evaluate.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr const char* usage = R"(Usage: [mpirun -np N] gptq-dist eval --model DIR --text FILE [options]

Perplexity of a float model or of an artifact: the text is tokenized whole, cut into windows without overlap, and the
mean cross-entropy of each window's predictions is averaged. Several ranks split the windows.
)";

nlohmann::json to_json(const pipeline::Evaluation& result) {
  return {{"perplexity", result.perplexity},
          {"nll", result.nll},
          {"windows", result.windows},
          {"tokens", result.tokens},
          {"seqlen", result.seqlen},
          {"seconds", result.seconds},
          {"weight_bytes", result.weight_bytes},
          {"quantized", result.quantized}};
}

}  // namespace

int eval_command(const Arguments& arguments) {
  CommandLine line("eval", usage);
  po::options_description options("Evaluation", 100, 50);
  options.add_options()("model", po::value<std::string>()->value_name("NAME|DIR"), "float model or GPTQ artifact")(
      "text", po::value<std::string>()->value_name("FILE"), "text, or token ids (.safetensors with input_ids)")(
      "seqlen", po::value<std::int64_t>()->value_name("N"),
      "tokens a window; default 2048 or the model's maximum; a token file's own length")(
      "windows", po::value<std::int64_t>()->default_value(0)->value_name("N"), "use the first N windows; 0: all")(
      "micro-batch-tokens", po::value<std::int64_t>()->default_value(4096)->value_name("N"),
      "tokens computed together")("json", po::value<std::string>()->value_name("FILE"), "write the result as JSON");
  line.add(options);
  line.add(machine_options());
  if (!line.parse(arguments)) {
    return 0;
  }
  for (const char* option : {"model", "text"}) {
    if (!line.has(option)) {
      throw Error(ErrorKind::usage, fmt::format("--{} is missing; see gptq-dist eval --help", option));
    }
  }
  pipeline::EvaluateConfig config;
  config.model = io::find_model(line.get<std::string>("model"));
  config.text.file = line.get<std::string>("text");
  config.text.windows = line.get<std::int64_t>("windows");
  config.micro_batch_tokens = line.get<std::int64_t>("micro-batch-tokens");
  if (line.has("seqlen")) {
    config.text.seqlen = line.get<std::int64_t>("seqlen");
  }
  if (config.text.windows < 0 || config.micro_batch_tokens <= 0 || config.text.seqlen.value_or(2) < 2) {
    throw Error(ErrorKind::usage,
                "--windows must not be negative, --micro-batch-tokens must be positive, --seqlen at least 2");
  }
  return run_session(line, [&](comm::World& world, Backend& backend) {
    const auto result = pipeline::evaluate(world, backend, config);
    if (world.rank() != 0) {
      return;
    }
    if (line.has("json")) {
      io::write_file_atomically(line.get<std::string>("json"), to_json(result).dump(1) + "\n");
    }
    fmt::print("perplexity {:.4f}  nll {:.6f}  {} windows of {} tokens  {}\n", result.perplexity, result.nll,
               result.windows, result.seqlen, human_seconds(result.seconds));
  });
}

}  // namespace gptqd::jobs
