#include "io/tokenizer/oniguruma.hpp"

#include <charconv>
#include <cstdint>
#include <optional>
#include <vector>

#include "io/tokenizer/unicode_tables.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

bool is_ascii_word(char32_t c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/// A character that stands for itself, inside a class or outside.
std::string escaped(char32_t c) {
  if (is_ascii_word(c) || c == ' ' || c == '\'') {
    return {static_cast<char>(c)};
  }
  return fmt::format("\\x{{{:x}}}", static_cast<std::uint32_t>(c));
}

class Translation {
 public:
  explicit Translation(std::string_view pattern) : pattern_(pattern) {
    if (!is_valid_utf8(pattern)) {
      throw Error(ErrorKind::input, "a regular expression is not valid UTF-8");
    }
  }

  std::string run() {
    std::string out;
    std::vector<bool> enclosing;  // whether case was ignored outside each open group
    while (!at_end()) {
      const auto start = position_;
      const auto c = next();
      switch (c) {
        case '\\':
          out += escape();
          break;
        case '[':
          out += bracketed();
          break;
        case '(':
          enclosing.push_back(ignores_case_);
          out += group_start();
          break;
        case ')':
          if (enclosing.empty()) {
            refuse(start, "a closing parenthesis that nothing opens");
          }
          ignores_case_ = enclosing.back();
          enclosing.pop_back();
          out += ')';
          break;
        case '|':
          out += '|';
          break;
        case '*':
        case '+':
        case '?':
          out += static_cast<char>(c);
          if (!at_end() && (peek() == '?' || peek() == '+')) {  // lazy, possessive
            out += static_cast<char>(next());
          }
          break;
        case '{':
          out += interval(start);
          break;
        case '.':
          out += "[^\\n]";
          break;
        case '^':
        case '$':
          refuse(start, "an anchor of lines");
        default:
          out += literal(start, c);
      }
    }
    if (!enclosing.empty()) {
      refuse(pattern_.size(), "the end of the pattern inside a group");
    }
    return out;
  }

 private:
  bool at_end() const { return position_ >= pattern_.size(); }
  char32_t peek() const { return code_point_at(pattern_, position_); }
  char32_t next() {
    const auto c = peek();
    position_ += utf8_step(pattern_, position_).length;
    return c;
  }
  bool take(std::string_view text) {
    if (!pattern_.substr(position_).starts_with(text)) {
      return false;
    }
    position_ += text.size();
    return true;
  }

  [[noreturn]] void refuse(std::size_t start, std::string_view what) const {
    const auto end = std::min(pattern_.size(), std::max(position_, start));
    throw Error(ErrorKind::input,
                fmt::format("regular expression {}: {} (\"{}\" at byte {}) is not supported yet", pattern_, what,
                            pattern_.substr(std::min(start, end), end - std::min(start, end)), start));
  }

  std::string literal(std::size_t start, char32_t c) const {
    if (ignores_case_ && c >= 0x80) {
      refuse(start, "a character outside ASCII where case is ignored");
    }
    return escaped(c);
  }

  std::string group_start() {
    const auto start = position_ - 1;
    for (const std::string_view plain : {"?:", "?=", "?!", "?>"}) {
      if (take(plain)) {
        return fmt::format("({}", plain);
      }
    }
    if (take("?i:")) {
      ignores_case_ = true;
      return "(?i:";
    }
    if (!at_end() && peek() == '?') {
      next();
      if (!at_end()) {
        next();
      }
      refuse(start, "this kind of group");
    }
    return "(?:";  // what a group has caught is never asked for
  }

  std::optional<int> number() {
    int value = 0;
    const char* const begin = pattern_.data() + position_;
    const auto result = std::from_chars(begin, pattern_.data() + pattern_.size(), value);
    if (result.ec != std::errc() || result.ptr == begin || *begin == '-') {
      return std::nullopt;
    }
    position_ += static_cast<std::size_t>(result.ptr - begin);
    return value;
  }

  /// {n}, {n,}, {,m}, {n,m} behind the brace.
  std::string interval(std::size_t start) {
    const auto least = number();
    std::optional<int> most = least;
    if (take(",")) {
      most = number();
      if (!least && !most) {
        refuse(start, "a brace that opens no interval");
      }
    }
    if (!take("}") || (!least && !most) || (least && most && *least > *most)) {
      refuse(start, "a brace that opens no interval");
    }
    const auto after = at_end() ? U' ' : peek();
    // Oniguruma takes {n,m}+ for a repeated interval and {n}? for an optional one.
    if (after == '+' || (after == '?' && least == most)) {
      next();
      refuse(start, "an interval with a suffix that Oniguruma reads in its own way");
    }
    std::string out = fmt::format("{{{},", least.value_or(0));
    if (most) {
      out += std::to_string(*most);
    }
    out += '}';
    if (after == '?') {
      next();
      out += '?';
    }
    return out;
  }

  /// A character that an escape spells, behind backslash and `c`; nullopt when it is no such escape.
  std::optional<char32_t> escaped_character(std::size_t start, char32_t c) {
    switch (c) {
      case 't':
        return '\t';
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      case 'e':
        return 0x1b;
      case 'u':
        return hexadecimal(start, 4, 4);
      case 'x': {
        if (!take("{")) {
          const auto value = hexadecimal(start, 1, 2);
          if (value >= 0x80) {
            refuse(start, "a byte outside ASCII");
          }
          return value;
        }
        const auto value = hexadecimal(start, 1, 8);
        if (!take("}")) {
          refuse(start, "an escape without its end");
        }
        return value;
      }
      default:
        return is_ascii_word(c) ? std::nullopt : std::optional(c);
    }
  }

  char32_t hexadecimal(std::size_t start, std::size_t least, std::size_t most) {
    const auto digits = pattern_.substr(position_, most);
    std::uint32_t value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    const auto length = static_cast<std::size_t>(result.ptr - digits.data());
    position_ += length;
    if (result.ec != std::errc() || length < least || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) {
      refuse(start, "an escape that spells no character");
    }
    return value;
  }

  /// What \s, \d, \w, \p{...} and their complements stand for, behind backslash and `c`.
  struct Set {
    std::string members;
    bool negated = false;
  };
  std::optional<Set> escaped_set(std::size_t start, char32_t c) {
    switch (c) {
      case 's':
      case 'S':
        return Set{std::string(space_members), c == 'S'};
      case 'd':
      case 'D':
        return Set{category_members("Nd"), c == 'D'};
      case 'w':
      case 'W':
        return Set{word_members(), c == 'W'};
      case 'p':
      case 'P': {
        const auto end = pattern_.find('}', position_);
        if (!take("{") || end == std::string_view::npos) {
          refuse(start, "a property without braces");
        }
        const bool inverted = take("^");
        const auto name = pattern_.substr(position_, end - position_);
        position_ = end + 1;
        if (!is_general_category(name)) {
          refuse(start, "this property");
        }
        if (ignores_case_) {
          refuse(start, "a property where case is ignored");
        }
        return Set{category_members(name), (c == 'P') != inverted};
      }
      default:
        return std::nullopt;
    }
  }

  /// An escape outside classes, behind the backslash.
  std::string escape() {
    const auto start = position_ - 1;
    if (at_end()) {
      refuse(start, "a backslash at the end");
    }
    const auto c = next();
    if (c == 'A' || c == 'z') {
      return fmt::format("\\{}", static_cast<char>(c));
    }
    if (const auto set = escaped_set(start, c)) {
      return fmt::format("[{}{}{}]", set->negated ? "^" : "", set->members,
                         c == 'w' || c == 'W' ? more_word_members : "");
    }
    if (const auto character = escaped_character(start, c)) {
      return literal(start, *character);
    }
    refuse(start, "this escape");
  }

  /// A class, behind its bracket.
  std::string bracketed() {
    const bool negated = take("^");
    return fmt::format("[{}{}]", negated ? "^" : "", members(position_ - 1, 0));
  }

  /// Members up to the closing bracket, those of nested classes among them.
  std::string members(std::size_t start, int depth) {
    std::string out;
    if (!at_end() && peek() == ']') {
      next();
      refuse(start, "a class that begins with its own end");
    }
    if (depth > 20) {
      refuse(start, "a class nested so deeply");
    }
    while (true) {
      if (at_end()) {
        refuse(start, "a class without its end");
      }
      const auto place = position_;
      const auto c = next();
      if (c == ']') {
        return out;
      }
      if (c == '[') {
        if (!at_end() && (peek() == '^' || peek() == ':')) {
          next();
          refuse(place, "a negated or named class inside a class");
        }
        out += members(place, depth + 1);
        continue;
      }
      if (c == '&' && !at_end() && peek() == '&') {
        next();
        refuse(place, "an intersection of classes");
      }
      const auto first = member(place, c, out);
      if (at_end() || peek() != '-') {
        if (first) {
          out += literal(place, *first);
        }
        continue;
      }
      // A hyphen: of a range, or itself before the closing bracket.
      const auto hyphen = position_;
      next();
      if (!at_end() && peek() == ']') {
        position_ = hyphen;
        if (first) {
          out += literal(place, *first);
        }
        next();
        out += escaped('-');
        continue;
      }
      if (at_end()) {
        refuse(start, "a class without its end");
      }
      const auto last_place = position_;
      const auto last_character = next();
      const auto last = last_character == '[' ? std::nullopt : member(last_place, last_character, out);
      if (!first || !last || *first > *last) {
        refuse(place, "this range");
      }
      out += fmt::format("{}-{}", literal(place, *first), literal(last_place, *last));
    }
  }

  /// The character that a member is, or nullopt when it is a set, whose members it appends to `out`.
  std::optional<char32_t> member(std::size_t place, char32_t c, std::string& out) {
    if (c != '\\') {
      return c;
    }
    if (at_end()) {
      refuse(place, "a backslash at the end");
    }
    const auto letter = next();
    if (const auto set = escaped_set(place, letter)) {
      if (set->negated) {
        refuse(place, "a complement inside a class");
      }
      out += set->members;
      return std::nullopt;
    }
    const auto character = escaped_character(place, letter);
    if (!character) {
      refuse(place, "this escape");
    }
    return character;
  }

  std::string_view pattern_;
  std::size_t position_ = 0;
  bool ignores_case_ = false;
};

}  // namespace

std::string pcre2_from_oniguruma(std::string_view pattern) { return Translation(pattern).run(); }

std::string literal_pattern(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); i += utf8_step(text, i).length) {
    out += escaped(code_point_at(text, i));
  }
  return out;
}

}  // namespace gptqd::io
