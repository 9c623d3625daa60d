#include "io/artifact/layer_patterns.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

namespace gptqd::io {

namespace {

/// A regular expression that matches the text alone.
std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) {
      result += '\\';
    }
    result += c;
  }
  return result;
}

/// The name under which engines know the tensor that they make of linears with one input; empty where they make none.
std::string fused_name(const std::vector<std::string>& names) {
  if (names.size() < 2) {
    return {};
  }
  const auto& first = names.front();
  return first.substr(0, first.rfind('.') + 1) + (names.size() == 3 ? "qkv_proj" : "gate_up_proj");
}

/// Where a module stands: "layers", "3", and its name within the block.
struct Place {
  std::string container;
  std::string block;
  std::size_t group = 0;
  std::string name;
};

/// nullopt for a module outside the blocks.
std::optional<Place> place_of(const std::string& module, const std::vector<std::vector<std::string>>& groups) {
  for (std::size_t group = 0; group < groups.size(); ++group) {
    for (const auto& name : groups[group]) {
      if (!module.ends_with("." + name)) {
        continue;
      }
      const auto path = std::string_view(module).substr(0, module.size() - name.size() - 1);
      const auto dot = path.rfind('.');
      if (dot == std::string_view::npos) {
        continue;
      }
      const auto list = path.substr(0, dot);
      return Place{.container = std::string(list.substr(list.rfind('.') + 1)),
                   .block = std::string(path.substr(dot + 1)),
                   .group = group,
                   .name = name};
    }
  }
  return std::nullopt;
}

/// Names that have the same settings in the same blocks.
struct Shared {
  std::optional<LayerSettings> settings;
  std::string container;
  std::vector<std::string> names;
  std::vector<std::string> blocks;
};

class Collector {
 public:
  explicit Collector(const ArtifactContent& content) : content_(content) {
    for (const auto& block : content.blocks) {
      for (const auto& layer : block) {
        auto settings = layer.settings;
        settings.reordered = content.settings.reordered;
        if (settings != content.settings) {
          add(layer.module, settings);
        }
      }
    }
    for (const auto& module : content.float_linears) {
      add(module, std::nullopt);
    }
  }

  std::vector<Shared> run() {
    for (auto& [place, parts] : differing_) {
      for (auto& part : parts) {
        const auto& whole = content_.groups_of_block[place.group];
        if (part.names.size() == whole.size()) {
          if (auto fused = fused_name(whole); !fused.empty()) {
            part.names.push_back(std::move(fused));
          }
        }
        join(std::move(part));
      }
    }
    for (auto shared = patterns_.begin(); shared != patterns_.end(); ++shared) {
      for (auto other = shared + 1; other != patterns_.end();) {
        const bool joins = other->settings == shared->settings && other->container == shared->container &&
                           other->blocks == shared->blocks;
        if (joins) {
          shared->names.insert(shared->names.end(), other->names.begin(), other->names.end());
        }
        other = joins ? patterns_.erase(other) : other + 1;
      }
    }
    return std::move(patterns_);
  }

 private:
  struct Group {
    std::size_t order;  ///< of the block's first appearance
    std::size_t group;
    bool operator<(const Group& other) const { return std::pair(order, group) < std::pair(other.order, other.group); }
  };

  void add(const std::string& module, const std::optional<LayerSettings>& settings) {
    const auto place = place_of(module, content_.groups_of_block);
    if (!place) {
      return;
    }
    const auto path = std::pair(place->container, place->block);
    const auto known = order_.emplace(path, order_.size()).first;
    auto& parts = differing_[{.order = known->second, .group = place->group}];
    auto part =
        std::find_if(parts.begin(), parts.end(), [&](const Shared& shared) { return shared.settings == settings; });
    if (part == parts.end()) {
      part = parts.insert(parts.end(), {settings, place->container, {}, {place->block}});
    }
    part->names.push_back(place->name);
  }

  /// Adds the block to those with the same names and settings.
  void join(Shared part) {
    const auto same = std::find_if(patterns_.begin(), patterns_.end(), [&](const Shared& shared) {
      return shared.settings == part.settings && shared.container == part.container && shared.names == part.names;
    });
    if (same == patterns_.end()) {
      patterns_.push_back(std::move(part));
    } else {
      same->blocks.push_back(part.blocks.front());
    }
  }

  const ArtifactContent& content_;
  std::map<std::pair<std::string, std::string>, std::size_t> order_;
  std::map<Group, std::vector<Shared>> differing_;
  std::vector<Shared> patterns_;
};

}  // namespace

std::vector<LayerPattern> layer_patterns(const ArtifactContent& content) {
  std::vector<LayerPattern> patterns;
  for (const auto& shared : Collector(content).run()) {
    std::vector<std::string> names;
    for (const auto& name : shared.names) {
      names.push_back(escaped(name));
    }
    // Engines may know the model under another prefix than the files ("model.decoder.layers", "decoder.layers").
    patterns.push_back({.regex = fmt::format("(?:.*\\.)?{}\\.(?:{})\\.(?:{})$", escaped(shared.container),
                                             fmt::join(shared.blocks, "|"), fmt::join(names, "|")),
                        .settings = shared.settings});
  }
  return patterns;
}

}  // namespace gptqd::io
