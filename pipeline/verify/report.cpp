#include "pipeline/verify/report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

namespace gptqd::pipeline {

namespace {

constexpr std::size_t most_findings = 8;
constexpr std::size_t worst_layers = 5;

nlohmann::json json_of(const io::LayerFormat& format) {
  return {{"name", format.module},
          {"rows", format.rows},
          {"cols", format.cols},
          {"bits", format.settings.bits},
          {"group_size", format.settings.group_size},
          {"sym", format.settings.sym},
          {"desc_act", format.settings.reordered}};
}

nlohmann::json json_of(const KernelSummary& summary) {
  return {{"kernel", name_of(summary.kernel)},
          {"engines", engines_of(summary.kernel)},
          {"tensors", summary.tensors},
          {"takes", summary.takes},
          {"pads", summary.pads},
          {"reason", summary.first_reason}};
}

std::string describe(const KernelSummary& summary) {
  const std::string who = fmt::format("{} ({})", name_of(summary.kernel), engines_of(summary.kernel));
  if (summary.takes == summary.tensors && summary.pads == 0) {
    return fmt::format("{}: all {} tensors", who, summary.tensors);
  }
  if (summary.takes == summary.tensors) {
    return fmt::format("{}: all {} tensors, {} of them padded, which engines before mid-2026 do not do ({})", who,
                       summary.tensors, summary.pads, summary.first_reason);
  }
  return fmt::format("{}: {} of {} tensors ({})", who, summary.takes, summary.tensors, summary.first_reason);
}

}  // namespace

void Check::skip(std::string why) {
  status = Status::skipped;
  summary = std::move(why);
}

void Check::add(Status found, std::string text) {
  if (found == Status::fail || status != Status::fail) {
    status = found;
  }
  const auto place = found == Status::fail
                         ? std::find_if(findings.begin(), findings.end(),
                                        [](const Finding& finding) { return finding.status != Status::fail; })
                         : findings.end();
  findings.insert(place, {found, std::move(text)});
  if (findings.size() > most_findings) {
    findings.pop_back();
    ++left_out;
  }
}

std::string_view name_of(Check::Status status) {
  switch (status) {
    case Check::Status::pass:
      return "pass";
    case Check::Status::warning:
      return "warning";
    case Check::Status::fail:
      return "fail";
    default:
      return "skipped";
  }
}

bool VerifyReport::passed() const {
  return std::none_of(checks.begin(), checks.end(),
                      [](const Check& check) { return check.status == Check::Status::fail; });
}

nlohmann::json VerifyReport::to_json() const {
  nlohmann::json json = {{"artifact", artifact},
                         {"format", format.empty() ? nlohmann::json() : nlohmann::json(format)},
                         {"verdict", passed() ? "pass" : "fail"},
                         {"checks", nlohmann::json::array()},
                         {"layers", nlohmann::json::array()},
                         {"tensor_parallel", nlohmann::json::array()},
                         {"perplexity", perplexity}};
  for (const auto& check : checks) {
    nlohmann::json findings = nlohmann::json::array();
    for (const auto& finding : check.findings) {
      findings.push_back({{"status", name_of(finding.status)}, {"text", finding.text}});
    }
    json["checks"].push_back({{"name", check.name},
                              {"status", name_of(check.status)},
                              {"summary", check.summary},
                              {"findings", std::move(findings)},
                              {"left_out", check.left_out}});
  }
  for (const auto& layer : layers) {
    auto entry = json_of(layer.format);
    entry["codes"] = pipeline::to_json(layer.codes);
    entry["difference"] = layer.difference ? pipeline::to_json(*layer.difference) : nlohmann::json();
    json["layers"].push_back(std::move(entry));
  }
  for (const auto& split : tensor_parallel) {
    nlohmann::json engines = nlohmann::json::array();
    for (const auto& engine : split.engines) {
      engines.push_back({{"engine", engine.engine}, {"takes", engine.takes}, {"tensors", engine.tensors}});
    }
    nlohmann::json kernels = nlohmann::json::array();
    for (const auto& kernel : split.kernels) {
      kernels.push_back(json_of(kernel));
    }
    json["tensor_parallel"].push_back({{"size", split.size},
                                       {"holds", split.obstacles.empty()},
                                       {"obstacles", split.obstacles},
                                       {"engines", std::move(engines)},
                                       {"kernels", std::move(kernels)}});
  }
  return json;
}

std::string VerifyReport::to_text() const {
  std::string text;
  const auto out = std::back_inserter(text);
  for (const auto& check : checks) {
    fmt::format_to(out, "{:<8} {:<14} {}\n", name_of(check.status), check.name, check.summary);
    for (const auto& finding : check.findings) {
      fmt::format_to(out, "           {}: {}\n", name_of(finding.status), finding.text);
    }
    if (check.left_out > 0) {
      fmt::format_to(out, "           and {} more\n", check.left_out);
    }
  }
  for (const auto& split : tensor_parallel) {
    if (!split.obstacles.empty()) {
      fmt::format_to(out, "{} GPUs: no: {}\n", split.size, fmt::join(split.obstacles, "; "));
      continue;
    }
    fmt::format_to(out, "{} GPU{}:\n", split.size, split.size == 1 ? "" : "s");
    for (const auto& kernel : split.kernels) {
      fmt::format_to(out, "    {}\n", describe(kernel));
    }
  }
  std::vector<const VerifiedLayer*> compared;
  for (const auto& layer : layers) {
    if (layer.difference) {
      compared.push_back(&layer);
    }
  }
  std::stable_sort(compared.begin(), compared.end(), [](const VerifiedLayer* a, const VerifiedLayer* b) {
    return a->difference->relative_error > b->difference->relative_error;
  });
  if (!compared.empty()) {
    text += "largest relative errors of weights:\n";
    for (std::size_t i = 0; i < std::min(worst_layers, compared.size()); ++i) {
      const auto& layer = *compared[i];
      fmt::format_to(out, "    {:.4f}  {}: {}; worst element {:.1f} steps off, {:.2f} % of codes at an end\n",
                     layer.difference->relative_error, layer.format.module, io::to_text(layer.format.settings),
                     layer.difference->worst_step, 100 * layer.codes.saturated);
    }
  }
  return text;
}

}  // namespace gptqd::pipeline
