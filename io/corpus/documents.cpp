#include "io/corpus/documents.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "io/json_file.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

// What a short line counts as: so that a limit on bytes bounds the number of documents, too.
constexpr std::size_t least_line_bytes = 64;
constexpr std::string_view white_space = " \t\n\r\v\f";

std::string_view stripped(std::string_view line) {
  const auto first = line.find_first_not_of(white_space);
  return first == std::string_view::npos ? std::string_view()
                                         : line.substr(first, line.find_last_not_of(white_space) - first + 1);
}

/// The first keys of an object, for messages.
std::string keys_of(const nlohmann::json& object) {
  constexpr std::size_t longest = 200;
  std::string names;
  for (const auto& [key, unused] : object.items()) {
    if (names.size() + key.size() < longest) {
      names += fmt::format("{}\"{}\"", names.empty() ? "" : ", ", key);
    }
  }
  return names.empty() ? "none" : names;
}

std::string content_text(const nlohmann::json& message, std::string_view where) {
  const auto& content = message.at("content");
  if (content.is_null()) {
    return {};
  }
  if (content.is_string()) {
    return content.get<std::string>();
  }
  if (!content.is_array()) {
    throw Error(ErrorKind::input, fmt::format("{}: \"content\" is {}, expected a string, null, or a list of parts",
                                              where, content.type_name()));
  }
  std::string text;
  for (const auto& part : content) {
    if (get<std::string>(part, "type", where) == "text") {
      text += get<std::string>(part, "text", where);
    }
  }
  return text;
}

std::string render(const nlohmann::json& messages, std::string_view where) {
  if (!messages.is_array() || messages.empty()) {
    throw Error(ErrorKind::input,
                fmt::format("{}: \"messages\" is {}, expected a list of {{\"role\": ..., \"content\": ...}}", where,
                            messages.is_array() ? "empty" : messages.type_name()));
  }
  std::string text;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const auto place = fmt::format("{}, messages[{}]", where, i);
    const auto role = get<std::string>(messages[i], "role", place);
    if (!messages[i].contains("content")) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: the key \"content\" is missing; it has {}", place, keys_of(messages[i])));
    }
    text += fmt::format("{}{}: {}", i == 0 ? "" : "\n\n", role, content_text(messages[i], place));
  }
  return text;
}

}  // namespace

DocumentFormat document_format(const std::filesystem::path& path) {
  const auto name = path.extension() == ".gz" ? path.stem() : path.filename();
  const auto ending = name.extension();
  return ending == ".jsonl" || ending == ".ndjson" || ending == ".json" ? DocumentFormat::json_lines
                                                                        : DocumentFormat::text;
}

std::string json_line_text(std::string_view line, std::string_view where) {
  auto object = parse_json(line, where);
  if (!object.is_object()) {
    throw Error(ErrorKind::input,
                fmt::format("{}: is {}, expected an object with \"text\" or \"messages\"; each line holds one document "
                            "(a JSON array becomes lines by jq -c '.[]')",
                            where, object.type_name()));
  }
  if (const auto text = object.find("text"); text != object.end()) {
    if (!text->is_string()) {
      throw Error(ErrorKind::input, fmt::format("{}: \"text\" is {}, expected a string", where, text->type_name()));
    }
    return std::move(text->get_ref<std::string&>());
  }
  if (const auto messages = object.find("messages"); messages != object.end()) {
    return render(*messages, where);
  }
  throw Error(
      ErrorKind::input,
      fmt::format("{}: has neither \"text\" nor \"messages\" but the keys {}; rename the key that holds the text",
                  where, keys_of(object)));
}

DocumentReader::DocumentReader(const std::filesystem::path& path, DocumentFormat format)
    : DocumentReader(open_text(path), format, path.string()) {}

DocumentReader::DocumentReader(std::unique_ptr<ByteStream> stream, DocumentFormat format, std::string name,
                               std::int64_t most_bytes)
    : format_(format), name_(std::move(name)), most_bytes_(most_bytes) {
  if (format == DocumentFormat::text) {
    whole_ = std::move(stream);
  } else {
    lines_.emplace(std::move(stream), name_, most_line_bytes);
  }
}

std::optional<std::string> DocumentReader::next() {
  return format_ == DocumentFormat::text ? read_whole() : read_line();
}

void DocumentReader::count(std::size_t bytes) {
  text_bytes_ += static_cast<std::int64_t>(bytes);
  if (text_bytes_ > most_bytes_) {
    throw Error(ErrorKind::input,
                fmt::format("{} holds more than {} bytes of text (decompressed), which is far more than calibration or "
                            "evaluation needs; take a part of it",
                            name_, most_bytes_));
  }
}

std::optional<std::string> DocumentReader::read_whole() {
  if (!whole_) {
    return std::nullopt;
  }
  std::string text;
  std::vector<char> piece(std::size_t{1} << 16);
  while (const std::size_t bytes = whole_->read(piece)) {
    count(bytes);
    text.append(piece.data(), bytes);
  }
  whole_.reset();
  return text;
}

std::optional<std::string> DocumentReader::read_line() {
  while (const auto line = lines_->next()) {
    count(std::max(line->size(), least_line_bytes));
    const auto content = stripped(*line);
    switch (format_) {
      case DocumentFormat::json_lines:
        if (!content.empty()) {
          return json_line_text(content, fmt::format("{}, line {}", name_, lines_->number()));
        }
        continue;
      case DocumentFormat::wikitext_lines:
        return content.empty() ? std::string() : std::string(*line) + (lines_->had_end() ? "\n" : "");
      default:
        return std::string(content);
    }
  }
  return std::nullopt;
}

}  // namespace gptqd::io
