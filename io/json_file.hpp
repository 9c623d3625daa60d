#pragma once
/// @file JSON files: read with limits, and typed access whose messages name file, key, got and expected.
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace gptqd::io {

/// Deepest nesting of arrays and objects that the readers below accept.
inline constexpr int max_json_depth = 64;
/// Largest JSON file that the readers below accept unless told otherwise: tokenizer.json files reach tens of MiB.
inline constexpr std::int64_t default_max_json_bytes = std::int64_t{256} << 20;

/// The JSON file at `path`.
/// @throws Error (input) for a missing file, one above `max_bytes`, text that is not JSON (with line and column), and
///         nesting deeper than max_json_depth; (io) when reading fails.
nlohmann::json read_json(const std::filesystem::path& path, std::int64_t max_bytes = default_max_json_bytes);
/// The same with the file's order of keys, for files that are written again.
nlohmann::ordered_json read_ordered_json(const std::filesystem::path& path,
                                         std::int64_t max_bytes = default_max_json_bytes);
/// JSON text; `where` names it in messages. Of a key that occurs twice the last one counts, as in Python.
/// @throws Error (input) as read_json
nlohmann::json parse_json(std::string_view text, std::string_view where);

namespace detail {

/// Where a value stands, rendered only for a message: `config.json: "eos_token_id"[1]`.
struct JsonPlace {
  const JsonPlace* parent = nullptr;
  std::string_view where;
  std::string_view key;
  std::int64_t index = -1;

  std::string text() const;
};

bool json_bool(const nlohmann::json& value, const JsonPlace& place);
std::int64_t json_integer(const nlohmann::json& value, const JsonPlace& place, std::int64_t least, std::int64_t most);
double json_number(const nlohmann::json& value, const JsonPlace& place);
const std::string& json_string(const nlohmann::json& value, const JsonPlace& place);
void expect_array(const nlohmann::json& value, const JsonPlace& place);
/// The member `key` of `object`, or null when there is none.
const nlohmann::json* find_member(const nlohmann::json& object, std::string_view key, std::string_view where);
[[noreturn]] void fail_missing(std::string_view key, std::string_view where);

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};

template <class T>
T convert(const nlohmann::json& value, const JsonPlace& place) {
  if constexpr (IsVector<T>::value) {
    expect_array(value, place);
    T result;
    result.reserve(value.size());
    std::int64_t index = 0;
    for (const auto& element : value) {
      result.push_back(
          convert<typename T::value_type>(element, {.parent = &place, .where = {}, .key = {}, .index = index++}));
    }
    return result;
  } else if constexpr (std::is_same_v<T, nlohmann::json>) {
    return value;
  } else if constexpr (std::is_same_v<T, bool>) {
    return json_bool(value, place);
  } else if constexpr (std::is_integral_v<T>) {
    static_assert(sizeof(T) < sizeof(std::int64_t) || std::is_signed_v<T>, "64-bit integers are read as int64_t");
    return static_cast<T>(json_integer(value, place, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
  } else if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(json_number(value, place));
  } else {
    static_assert(std::is_same_v<T, std::string>,
                  "bool, integers, floating point, std::string, json and vectors of them");
    return json_string(value, place);
  }
}

}  // namespace detail

/// The value of `key` as a T: bool, an integer, float or double, std::string, nlohmann::json, or a vector of them.
///
/// A number with an integral value (4.0) is an integer; one outside T's range is refused. `where` (a file's name, say)
/// opens the message.
/// @throws Error (input) when `object` is not an object, the key is missing, or the value is not a T
template <class T>
T get(const nlohmann::json& object, std::string_view key, std::string_view where) {
  const nlohmann::json* value = detail::find_member(object, key, where);
  if (value == nullptr) {
    detail::fail_missing(key, where);
  }
  return detail::convert<T>(*value, {.parent = nullptr, .where = where, .key = key, .index = -1});
}

/// The same, or `fallback` when the key is missing or null.
template <class T>
T get_or(const nlohmann::json& object, std::string_view key, std::type_identity_t<T> fallback, std::string_view where) {
  const nlohmann::json* value = detail::find_member(object, key, where);
  if (value == nullptr || value->is_null()) {
    return fallback;
  }
  return detail::convert<T>(*value, {.parent = nullptr, .where = where, .key = key, .index = -1});
}

}  // namespace gptqd::io
