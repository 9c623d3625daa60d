#pragma once
/// @file What the readers of tokenizer.json's parts share.
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "io/tokenizer/regex.hpp"

namespace gptqd::io {

/// @throws Error (input): "WHERE: WHAT"
[[noreturn]] void fail(std::string_view where, const std::string& what);
/// `what` is a thing of the Hugging Face library that this program does not do.
/// @throws Error (input) naming it and what is supported
[[noreturn]] void fail_unsupported(std::string_view where, const std::string& what, std::string_view supported);

/// Refuses settings that nobody would obey.
/// @param part  the object's name, for messages
/// @throws Error (input) unless `object` is an object with no other keys than `known`
void check_members(const nlohmann::json& object, std::initializer_list<std::string_view> known, std::string_view part,
                   std::string_view where);
/// The member of that name, or null.
const nlohmann::json& member_or_null(const nlohmann::json& object, const char* key);
/// "null" for null, else the object's "type". @throws Error (input) where there is none
std::string type_of(const nlohmann::json& part, std::string_view name, std::string_view where);
/// The one character that the string `key` holds. @throws Error (input)
char32_t get_character(const nlohmann::json& object, const char* key, const std::string& where);

/// The member "pattern": {"String": ...} or {"Regex": ...}. @throws Error (input)
Regex get_pattern(const nlohmann::json& object, const std::string& where);

}  // namespace gptqd::io
