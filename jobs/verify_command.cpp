#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include "comm/world.hpp"
#include "io/atomic_file.hpp"
#include "io/model_lookup.hpp"
#include "jobs/commands.hpp"
#include "jobs/console.hpp"
#include "jobs/session.hpp"
#include "pipeline/evaluate.hpp"
#include "pipeline/model_card.hpp"
#include "pipeline/verify/verify.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr const char* usage =
    R"(Usage: gptq-dist verify ARTIFACT [--against SOURCE] [--text FILE...] [options]

Looks a quantized model over, ours or another tool's (GPTQ checkpoints v1 and v2, compressed-tensors): its configuration,
its tensors, which kernels and how many GPUs take it; with --against, its weights beside the ones it was made from; with
--text, its perplexity beside theirs. Exits with 0 when every check passes, with 65 when one fails. Writes nothing but
what --json and --card ask for.
)";

using Words = std::vector<std::string>;

constexpr std::int64_t max_card_bytes = std::int64_t{16} << 20;

po::options_description verify_options() {
  po::options_description options("Verify", 100, 50);
  options.add_options()("artifact", po::value<std::string>()->value_name("NAME|DIR"), "the quantized model")(
      "against", po::value<std::string>()->value_name("NAME|DIR"), "the float model that it was made from")(
      "text", po::value<Words>()->multitoken()->value_name("FILE|NAME..."),
      "measure perplexities on these, as eval --text takes them")(
      "seqlen", po::value<std::int64_t>()->value_name("N"), "tokens a window; default 2048 or the model's maximum")(
      "windows", po::value<std::int64_t>()->default_value(0)->value_name("N"),
      "use the first N windows of each text; 0: all");
  options.add_options()("max-increase", po::value<double>()->value_name("PERCENT"),
                        "fail when the perplexity grows by more than this over the source's; default 5 at 8 bits, 25 "
                        "at 4, 100 at 3, 1000 at 2, by the fewest bits that occur");
  options.add_options()("tp", po::value<std::string>()->default_value("1,2,4,8")->value_name("N,..."),
                        "numbers of GPUs to split over (tensor parallel)");
  options.add_options()("json", po::value<std::string>()->value_name("FILE"), "write the report as JSON");
  options.add_options()("card", po::bool_switch(),
                        "write the perplexities into ARTIFACT/README.md, when every check passes");
  return options;
}

std::vector<int> sizes_of(const std::string& text) {
  std::vector<int> sizes;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int size = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), size);
    if (error != std::errc() || end != part.data() + part.size() || size < 1 || size > 4096) {
      throw Error(ErrorKind::usage,
                  fmt::format("--tp {}: expected numbers of GPUs from 1 to 4096, as in 1,2,4,8", text));
    }
    sizes.push_back(size);
  }
  if (sizes.empty()) {
    throw Error(ErrorKind::usage, "--tp: expected numbers of GPUs, as in 1,2,4,8");
  }
  return sizes;
}

/// How much of a perplexity few bits may cost, in percent, before something else must be wrong.
double usual_increase(int bits) { return bits >= 8 ? 5 : bits >= 4 ? 25 : bits == 3 ? 100 : 1000; }

struct Request {
  pipeline::VerifyRequest verify;
  std::vector<io::TextSource> texts;
  std::optional<std::int64_t> seqlen;
  std::int64_t windows = 0;
  std::optional<double> max_increase;
};

Request request_of(const CommandLine& line) {
  if (!line.has("artifact")) {
    throw Error(ErrorKind::usage, "the artifact is missing: name its folder; see gptq-dist verify --help");
  }
  Request request;
  request.verify.artifact = io::find_model(line.get<std::string>("artifact"));
  if (line.has("against")) {
    request.verify.against = io::find_model(line.get<std::string>("against"));
  }
  request.verify.tensor_parallel = sizes_of(line.get<std::string>("tp"));
  const int threads = line.get<int>("threads");
  request.verify.threads = threads > 0 ? threads : allowed_cpus();
  if (line.has("text")) {
    for (const auto& word : line.get<Words>("text")) {
      request.texts.push_back(io::TextSource::from_word(word));
    }
  }
  if (line.flag("card") && request.texts.empty()) {
    throw Error(ErrorKind::usage, "--card writes perplexities: give a --text to measure them on");
  }
  if (line.has("seqlen")) {
    request.seqlen = line.get<std::int64_t>("seqlen");
  }
  request.windows = line.get<std::int64_t>("windows");
  if (request.windows < 0 || request.seqlen.value_or(2) < 2) {
    throw Error(ErrorKind::usage, "--windows must not be negative, --seqlen at least 2");
  }
  if (line.has("max-increase")) {
    request.max_increase = line.get<double>("max-increase");
    if (!(*request.max_increase >= 0)) {
      throw Error(ErrorKind::usage, fmt::format("--max-increase {}: expected a percentage", *request.max_increase));
    }
  }
  return request;
}

int fewest_bits(const pipeline::VerifyReport& report) {
  int bits = 8;
  for (const auto& layer : report.layers) {
    bits = std::min(bits, layer.format.settings.bits);
  }
  return bits;
}

/// Adds the perplexities and what they say to the report.
void judge(const Request& request, const std::vector<pipeline::ModelEvaluation>& results,
           pipeline::VerifyReport& report) {
  pipeline::Check check{.name = "perplexity"};
  const auto& artifact = results.back();
  const auto* source = results.size() > 1 ? &results.front() : nullptr;
  const double limit = request.max_increase.value_or(usual_increase(fewest_bits(report)));
  report.perplexity = nlohmann::json::array();
  Words summaries;
  for (std::size_t i = 0; i < artifact.texts.size(); ++i) {
    const auto& text = artifact.texts[i];
    nlohmann::json entry = {{"text", text.source.name()}, {"hash", text.hash}, {"windows", text.windows},
                            {"seqlen", text.seqlen},      {"nll", text.nll},   {"perplexity", text.perplexity}};
    std::string summary = fmt::format("{}: {:.4f}", text.source.name(), text.perplexity);
    if (!std::isfinite(text.perplexity)) {
      check.fail(fmt::format("{}: the perplexity is no number", text.source.name()));
    }
    if (source != nullptr) {
      const double before = source->texts[i].perplexity;
      const double increase = 100 * (text.perplexity / before - 1);
      entry["source_perplexity"] = before;
      entry["increase_percent"] = increase;
      entry["max_increase_percent"] = limit;
      summary += fmt::format(", the source {:.4f} ({:+.2f} %, at most {:+.0f} %)", before, increase, limit);
      if (!(increase <= limit)) {
        check.fail(fmt::format("{}: {:.4f} is {:+.1f} % over the source's {:.4f}, more than {:.0f} %",
                               text.source.name(), text.perplexity, increase, before, limit));
      }
    }
    report.perplexity.push_back(std::move(entry));
    summaries.push_back(std::move(summary));
  }
  check.summary = fmt::format("{}", fmt::join(summaries, "; "));
  report.checks.push_back(std::move(check));
}

/// Prints the report. @return the command's exit code
int conclude(const CommandLine& line, const pipeline::VerifyReport& report) {
  if (line.has("json")) {
    io::write_file_atomically(line.get<std::string>("json"), report.to_json().dump(1) + "\n");
  }
  const auto failed = std::count_if(report.checks.begin(), report.checks.end(), [](const pipeline::Check& check) {
    return check.status == pipeline::Check::Status::fail;
  });
  fmt::print("{}{}: {}\n", report.to_text(), report.artifact,
             failed == 0 ? std::string("every check passed")
                         : fmt::format("{} of {} checks failed", failed, report.checks.size()));
  if (failed == 0 && line.flag("card")) {
    const auto path = std::filesystem::path(report.artifact) / pipeline::model_card_file;
    std::string card;
    if (std::filesystem::exists(path)) {
      const auto bytes = io::read_file(path, max_card_bytes);
      card.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    io::write_file_atomically(path, pipeline::with_perplexity(card, report.perplexity));
  }
  return failed == 0 ? 0 : exit_code(ErrorKind::input);
}

}  // namespace

int verify_command(const Arguments& arguments) {
  CommandLine line("verify", usage, "artifact");
  line.add(verify_options());
  line.add(machine_options());
  if (!line.parse(arguments)) {
    return 0;
  }
  const auto request = request_of(line);
  if (request.texts.empty()) {
    return comm::launcher_rank() == 0 ? conclude(line, pipeline::verify_artifact(request.verify, note)) : 0;
  }
  int code = 0;
  const int session_code = run_session(line, [&](comm::World& world, Backend& backend) {
    pipeline::VerifyReport report;
    if (world.rank() == 0) {
      const auto step = world.long_host_step("verifying the artifact");
      report = pipeline::verify_artifact(request.verify, note);
    }
    // An artifact that fails as it stands is not worth a forward pass, which would end in the same message at best.
    const bool sound = world.group().broadcast_value<std::uint8_t>(report.passed() ? 1 : 0, 0, "verdict") != 0;
    if (sound) {
      pipeline::EvaluateConfig config;
      if (request.verify.against) {
        config.models.push_back(*request.verify.against);
      }
      config.models.push_back(request.verify.artifact);
      config.request.sources = request.texts;
      config.request.windows = request.windows;
      config.request.seqlen = request.seqlen;
      const auto results = pipeline::evaluate(world, backend, config, note);
      if (world.rank() == 0) {
        judge(request, results, report);
      }
    } else if (world.rank() == 0) {
      pipeline::Check check{.name = "perplexity"};
      check.skip("not measured: another check failed");
      report.checks.push_back(std::move(check));
    }
    if (world.rank() == 0) {
      code = conclude(line, report);
    }
    code = world.group().broadcast_value(code, 0, "exit code");
  });
  return session_code == 0 ? code : session_code;
}

}  // namespace gptqd::jobs
