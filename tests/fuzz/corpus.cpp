/// @file Fuzzes the readers of calibration texts: any bytes give documents or an input error, nothing else.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "io/corpus/documents.hpp"
#include "kernels/base/error.hpp"

namespace {

using gptqd::io::DocumentFormat;

/// Reads all documents of a file that holds `content`; any exception but an input error ends the run.
void read(std::string_view content, DocumentFormat format) {
  try {
    auto stream = gptqd::io::memory_stream(content);
    if (gptqd::io::starts_like_gzip(content)) {
      stream = gptqd::io::gunzip(std::move(stream), "fuzz");
    }
    gptqd::io::DocumentReader reader(std::move(stream), format, "fuzz");
    while (reader.next()) {
    }
    if (reader.next()) {
      std::abort();  // the end is the end
    }
  } catch (const gptqd::Error& error) {
    if (error.kind() != gptqd::ErrorKind::input) {
      std::abort();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view content(reinterpret_cast<const char*>(data), size);
  for (const auto format : {DocumentFormat::text, DocumentFormat::json_lines, DocumentFormat::wikitext_lines}) {
    read(content, format);
  }
  return 0;
}
