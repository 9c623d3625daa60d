#include "pipeline/fingerprint.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/checksum.hpp"

namespace gptqd::pipeline {

std::string fingerprint_hash(const nlohmann::json& fingerprint) {
  const std::string text = fingerprint.dump();
  return io::xxh3_128_hex(std::as_bytes(std::span(text)));
}

std::vector<std::string> fingerprint_differences(const nlohmann::json& there, const nlohmann::json& here) {
  const auto a = there.flatten();
  const auto b = here.flatten();
  const auto value = [](const nlohmann::json& flat, const std::string& key) {
    return flat.contains(key) ? flat.at(key).dump() : std::string("nothing");
  };
  std::vector<std::string> differences;
  const auto compare = [&](const std::string& key) {
    if (value(a, key) != value(b, key)) {
      // A key begins with a slash but for the one of an edited fingerprint that is no object, or an empty one.
      std::string name = key.empty() ? "fingerprint" : key.substr(1);
      std::replace(name.begin(), name.end(), '/', '.');
      differences.push_back(fmt::format("{}: {} there, {} here", name, value(a, key), value(b, key)));
    }
  };
  for (const auto& [key, unused] : a.items()) {
    compare(key);
  }
  for (const auto& [key, unused] : b.items()) {
    if (!a.contains(key)) {
      compare(key);
    }
  }
  return differences;
}

bool only_environment_differs(const std::vector<std::string>& differences) {
  return std::all_of(differences.begin(), differences.end(),
                     [](const std::string& line) { return line.starts_with("environment."); });
}

std::filesystem::path fingerprint_path(const std::filesystem::path& work) { return work / "run.json"; }

}  // namespace gptqd::pipeline
