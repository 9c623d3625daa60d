#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "io/atomic_file.hpp"
#include "io/corpus/token_file.hpp"
#include "io/model_lookup.hpp"
#include "jobs/commands.hpp"
#include "jobs/console.hpp"
#include "jobs/session.hpp"
#include "pipeline/evaluate.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr const char* usage =
    R"(Usage: [mpirun -np N] gptq-dist eval --model DIR --text FILE... [--compare DIR...] [options]

Perplexity of float models and of artifacts: a text is tokenized whole, cut into windows without overlap, and the mean
cross-entropy of each window's predictions is averaged. Several ranks split the windows. With --compare, all models read
the same windows, and each difference to the first model's losses comes with its 95 % confidence interval.
)";

using Words = std::vector<std::string>;

po::options_description evaluation_options() {
  po::options_description options("Evaluation", 100, 50);
  options.add_options()("model", po::value<std::string>()->value_name("NAME|DIR"),
                        "float model or artifact (gptq, gptq_v2, compressed-tensors)")(
      "compare", po::value<Words>()->multitoken()->value_name("NAME|DIR..."),
      "more models, to be compared with the first; they need its tokenizer")(
      "text", po::value<Words>()->multitoken()->value_name("FILE|NAME..."),
      "text, JSON lines (.jsonl, .json), both also as .gz; token ids (.safetensors, .npy); or wikitext2, ptb, c4, "
      "ptb-new, c4-new, whose files are looked for in $GPTQ_DIST_DATA")(
      "convention", po::value<std::string>()->value_name("NAME"),
      "how files become windows: plain (default), or as the paper's code does with wikitext2, ptb, c4, ptb-new, "
      "c4-new; "
      "without --text, that data set itself")(
      "seqlen", po::value<std::int64_t>()->value_name("N"),
      "tokens a window; default 2048 or the model's maximum; a token file's own length")(
      "windows", po::value<std::int64_t>()->default_value(0)->value_name("N"),
      "use the first N windows of each text; 0: all")(
      "micro-batch-tokens", po::value<std::int64_t>()->default_value(4096)->value_name("N"),
      "tokens computed together")("hidden-memory", po::value<double>()->default_value(8)->value_name("GB"),
                                  "hidden states a rank may hold; beyond that, several passes over the blocks")(
      "json", po::value<std::string>()->value_name("FILE"), "write the results as JSON")(
      "logits", po::value<std::string>()->value_name("FILE"),
      "write the tokens and logits of one model and one text as safetensors, to be compared with another engine's; up "
      "to "
      "1 GB");
  return options;
}

/// What --text and --convention ask for.
std::vector<io::TextSource> sources_of(const CommandLine& line) {
  const bool is_given = line.has("convention");
  const auto convention =
      is_given ? io::convention_from_name(line.get<std::string>("convention")) : io::Convention::plain;
  if (!line.has("text")) {
    if (convention == io::Convention::plain) {
      throw Error(ErrorKind::usage, "--text is missing; see gptq-dist eval --help");
    }
    return {{.file = {}, .convention = convention}};
  }
  std::vector<io::TextSource> sources;
  for (const auto& word : line.get<Words>("text")) {
    auto source = io::TextSource::from_word(word);
    if (is_given && (source.file.empty() || io::is_token_file(source.file))) {
      throw Error(ErrorKind::usage,
                  fmt::format("--convention {} does not apply to --text {}, which is {}; evaluate it by itself",
                              io::name_of(convention), word,
                              source.file.empty() ? "a data set with its own convention" : "a token file"));
    }
    if (is_given) {
      source.convention = convention;
    }
    sources.push_back(std::move(source));
  }
  return sources;
}

pipeline::EvaluateConfig config_of(const CommandLine& line) {
  if (!line.has("model")) {
    throw Error(ErrorKind::usage, "--model is missing; see gptq-dist eval --help");
  }
  pipeline::EvaluateConfig config;
  config.request.sources = sources_of(line);
  config.models.push_back(io::find_model(line.get<std::string>("model")));
  if (line.has("compare")) {
    for (const auto& name : line.get<Words>("compare")) {
      config.models.push_back(io::find_model(name));
    }
  }
  config.request.windows = line.get<std::int64_t>("windows");
  config.micro_batch_tokens = line.get<std::int64_t>("micro-batch-tokens");
  if (line.has("seqlen")) {
    config.request.seqlen = line.get<std::int64_t>("seqlen");
  }
  if (line.has("logits")) {
    config.logits = line.get<std::string>("logits");
  }
  const double gigabytes = line.get<double>("hidden-memory");
  if (config.request.windows < 0 || config.micro_batch_tokens <= 0 || config.request.seqlen.value_or(2) < 2 ||
      !(gigabytes > 0 && gigabytes < 1e9)) {
    throw Error(ErrorKind::usage,
                "--windows must not be negative, --micro-batch-tokens and --hidden-memory must be positive, --seqlen "
                "at least 2");
  }
  config.max_hidden_bytes = static_cast<std::int64_t>(gigabytes * 1e9);
  return config;
}

nlohmann::json to_json(const pipeline::TextEvaluation& text) {
  nlohmann::json json = {{"text", text.source.name()},    {"convention", io::name_of(text.source.convention)},
                         {"perplexity", text.perplexity}, {"nll", text.nll},
                         {"windows", text.windows},       {"tokens", text.tokens},
                         {"seqlen", text.seqlen},         {"hash", text.hash},
                         {"window_nll", text.window_nll}};
  if (text.difference) {
    const auto& half_width = text.difference->half_width;
    json["difference"] = {{"nll", text.difference->mean},
                          {"half_width_95", half_width ? nlohmann::json(*half_width) : nlohmann::json()}};
  }
  return json;
}

/// All results; those of the first model's first text at the top level as well, for scripts that evaluate one.
nlohmann::json to_json(const std::vector<pipeline::ModelEvaluation>& results) {
  nlohmann::json models = nlohmann::json::array();
  for (const auto& model : results) {
    nlohmann::json texts = nlohmann::json::array();
    for (const auto& text : model.texts) {
      texts.push_back(to_json(text));
    }
    models.push_back({{"model", model.model.string()},
                      {"quantized", model.quantized},
                      {"bits", model.bits},
                      {"weight_bytes", model.weight_bytes},
                      {"seconds", model.seconds},
                      {"texts", std::move(texts)}});
  }
  nlohmann::json json = {{"models", models}};
  for (const char* key : {"quantized", "weight_bytes", "seconds"}) {
    json[key] = models.front().at(key);
  }
  for (const char* key : {"perplexity", "nll", "windows", "tokens", "seqlen"}) {
    json[key] = models.front().at("texts").front().at(key);
  }
  return json;
}

std::string describe(const pipeline::TextEvaluation& text) {
  const bool is_file_by_convention = !text.source.file.empty() && text.source.convention != io::Convention::plain;
  return fmt::format("{}{}: {} windows of {} tokens", text.source.name(),
                     is_file_by_convention ? fmt::format(" as {}", io::name_of(text.source.convention)) : "",
                     text.windows, text.seqlen);
}

std::string describe(const pipeline::PairedDifference& difference) {
  return difference.half_width ? fmt::format("{:+.4f} ± {:.4f}", difference.mean, *difference.half_width)
                               : fmt::format("{:+.4f} (one window)", difference.mean);
}

/// The last part of a model's path: a folder's name, and for a snapshot of the Hugging Face cache the repository's.
std::string short_name(const std::filesystem::path& path) {
  auto folder = path.lexically_normal();
  if (!folder.has_filename()) {
    folder = folder.parent_path();
  }
  if (folder.parent_path().filename() == "snapshots") {
    folder = folder.parent_path().parent_path();
  }
  return folder.filename().string();
}

/// For each text the models side by side.
void print_table(const std::vector<pipeline::ModelEvaluation>& results) {
  std::size_t width = 5;
  for (const auto& model : results) {
    width = std::max(width, short_name(model.model).size());
  }
  for (std::size_t i = 0; i < results.front().texts.size(); ++i) {
    fmt::print("{}{}\n{:<{}}  bits        size  perplexity{}\n", i == 0 ? "" : "\n", describe(results.front().texts[i]),
               "model", width, results.size() > 1 ? "  nll against the first, 95 %" : "");
    for (const auto& model : results) {
      const auto& text = model.texts[i];
      fmt::print("{:<{}}  {:>4.3g}  {:>10}  {:>10.4f}{}\n", short_name(model.model), width, model.bits,
                 human_bytes(model.weight_bytes), text.perplexity,
                 text.difference ? "  " + describe(*text.difference) : "");
    }
  }
}

}  // namespace

int eval_command(const Arguments& arguments) {
  CommandLine line("eval", usage);
  line.add(evaluation_options());
  line.add(machine_options());
  if (!line.parse(arguments)) {
    return 0;
  }
  const auto config = config_of(line);
  return run_session(line, [&](comm::World& world, Backend& backend) {
    const auto results = pipeline::evaluate(world, backend, config, note);
    if (world.rank() != 0) {
      return;
    }
    if (line.has("json")) {
      io::write_file_atomically(line.get<std::string>("json"), to_json(results).dump(1) + "\n");
    }
    const auto& first = results.front();
    if (results.size() == 1 && first.texts.size() == 1) {
      const auto& text = first.texts.front();
      fmt::print("perplexity {:.4f}  nll {:.6f}  {} windows of {} tokens  {}\n", text.perplexity, text.nll,
                 text.windows, text.seqlen, human_seconds(first.seconds));
    } else {
      print_table(results);
    }
  });
}

}  // namespace gptqd::jobs
