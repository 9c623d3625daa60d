#pragma once
/// @file The data sets of the GPTQ paper: how its code makes text of them, and where their files lie.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "io/corpus/documents.hpp"

namespace gptqd::io {

/// How a text becomes windows. Other than `plain`: as the published code does with the data set of that name
/// (IST-DASLab/gptq, datautils.py).
enum class Convention : std::uint8_t {
  plain,      ///< a file as it is
  wikitext2,  ///< rows joined by "\n\n"; calibration: train, evaluation: test
  ptb,        ///< rows joined by "\n\n"; train, validation
  ptb_new,    ///< rows joined by " "; train, test
  c4,         ///< random crops of long documents; train, 256 crops of validation
  c4_new,     ///< the same; train, 256 windows of the first 1,100 documents of validation, joined by " "
};

enum class Split : std::uint8_t { calibration, evaluation };

/// "wikitext2", "ptb-new".
std::string_view name_of(Convention convention);
/// @throws Error (usage) listing the names
Convention convention_from_name(std::string_view name);
/// The data set of that name; nothing for other words, "plain" included.
std::optional<Convention> known_corpus(std::string_view name);

/// Of a file that is read by a convention: of the rows of wikitext2 and ptb when they lie in a text file.
DocumentFormat document_format(const std::filesystem::path& path, Convention convention);
/// What stands between the rows of a data set's one text; nothing where documents stay apart (plain, c4).
std::optional<std::string_view> row_separator(Convention convention);

/// The file of a data set, looked for under the names that docs/calibration.md lists, with and without .gz, in each
/// folder of the colon-separated list $GPTQ_DIST_DATA.
/// @throws Error (input) saying where it looked and where the file can be had
std::filesystem::path find_corpus(Convention convention, Split split);

/// A file, or a data set whose file is to be found.
struct TextSource {
  std::filesystem::path file;  ///< empty: the data set's own
  Convention convention = Convention::plain;

  /// `word` is the name of a data set ("c4") or else a path ("./c4").
  static TextSource from_word(const std::string& word);
  /// For messages and tables: the path, or the data set's name.
  std::string name() const { return file.empty() ? std::string(name_of(convention)) : file.string(); }
  /// The file itself. @throws Error as find_corpus
  std::filesystem::path path(Split split) const { return file.empty() ? find_corpus(convention, split) : file; }
};

}  // namespace gptqd::io
