#include "io/json_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "io/atomic_file.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::size_t longest_quote = 200;

/// A piece of foreign text for a message: no longer than a line or two.
std::string excerpt(std::string text) {
  if (text.size() > longest_quote) {
    text.resize(longest_quote);
    text += "...";
  }
  return text;
}

template <class Json>
Json parse(std::string_view text, std::string_view where) {
  const auto check_depth = [where](int depth, typename Json::parse_event_t event, Json&) {
    if (depth >= max_json_depth &&
        (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start)) {
      throw Error(ErrorKind::input,
                  fmt::format("{}: arrays and objects are nested more than {} deep; this is no file of a model", where,
                              max_json_depth));
    }
    return true;
  };
  try {
    return Json::parse(text, check_depth);
  } catch (const nlohmann::json::exception& error) {
    std::string reason = error.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the class says nothing to users.
    if (const auto end = reason.find("] "); reason.starts_with('[') && end != std::string::npos) {
      reason.erase(0, end + 2);
    }
    throw Error(ErrorKind::input,
                fmt::format("{}: not valid JSON ({} bytes): {}", where, text.size(), excerpt(reason)));
  }
}

template <class Json>
Json read(const std::filesystem::path& path, std::int64_t max_bytes) {
  const auto bytes = read_file(path, max_bytes);
  return parse<Json>({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

}  // namespace

nlohmann::json read_json(const std::filesystem::path& path, std::int64_t max_bytes) {
  return read<nlohmann::json>(path, max_bytes);
}

nlohmann::ordered_json read_ordered_json(const std::filesystem::path& path, std::int64_t max_bytes) {
  return read<nlohmann::ordered_json>(path, max_bytes);
}

nlohmann::json parse_json(std::string_view text, std::string_view where) { return parse<nlohmann::json>(text, where); }

namespace detail {

namespace {

[[noreturn]] void fail(const nlohmann::json& value, const JsonPlace& place, const std::string& expected) {
  throw Error(
      ErrorKind::input,
      fmt::format("{}: expected {}, got {} ({})", place.text(), expected,
                  excerpt(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)), value.type_name()));
}

}  // namespace

std::string JsonPlace::text() const {
  if (parent != nullptr) {
    return fmt::format("{}[{}]", parent->text(), index);
  }
  return fmt::format("{}: \"{}\"", where, key);
}

bool json_bool(const nlohmann::json& value, const JsonPlace& place) {
  if (!value.is_boolean()) {
    fail(value, place, "true or false");
  }
  return value.get<bool>();
}

std::int64_t json_integer(const nlohmann::json& value, const JsonPlace& place, std::int64_t least, std::int64_t most) {
  std::int64_t number = 0;
  if (value.is_number_unsigned()) {
    if (value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      fail(value, place, fmt::format("an integer from {} to {}", least, most));
    }
    number = value.get<std::int64_t>();
  } else if (value.is_number_integer()) {
    number = value.get<std::int64_t>();
  } else if (value.is_number_float()) {
    const double real = value.get<double>();
    if (real != std::trunc(real) || std::fabs(real) > 0x1p53) {
      fail(value, place, "an integer");
    }
    number = static_cast<std::int64_t>(real);
  } else {
    fail(value, place, "an integer");
  }
  if (number < least || number > most) {
    fail(value, place, fmt::format("an integer from {} to {}", least, most));
  }
  return number;
}

double json_number(const nlohmann::json& value, const JsonPlace& place) {
  if (!value.is_number()) {
    fail(value, place, "a number");
  }
  return value.get<double>();
}

const std::string& json_string(const nlohmann::json& value, const JsonPlace& place) {
  if (!value.is_string()) {
    fail(value, place, "a string");
  }
  return value.get_ref<const std::string&>();
}

void expect_array(const nlohmann::json& value, const JsonPlace& place) {
  if (!value.is_array()) {
    fail(value, place, "an array");
  }
}

const nlohmann::json* find_member(const nlohmann::json& object, std::string_view key, std::string_view where) {
  if (!object.is_object()) {
    throw Error(ErrorKind::input,
                fmt::format("{}: expected an object with the key \"{}\", got {}", where, key, object.type_name()));
  }
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

void fail_missing(std::string_view key, std::string_view where) {
  throw Error(ErrorKind::input, fmt::format("{}: the key \"{}\" is missing", where, key));
}

}  // namespace detail

}  // namespace gptqd::io
