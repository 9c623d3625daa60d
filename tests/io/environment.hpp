#pragma once
/// @file Environment variables that a test sets, put back afterwards.
#include <cstdlib>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>

namespace gptqd::io::test {

/// Unsets the variables while it lives, but for those that set() sets.
class Environment {
 public:
  Environment(std::initializer_list<const char*> names) {
    for (const auto* name : names) {
      const char* value = std::getenv(name);
      before_[name] = value == nullptr ? std::nullopt : std::optional<std::string>(value);
      unsetenv(name);
    }
  }
  ~Environment() {
    for (const auto& [name, value] : before_) {
      if (value) {
        setenv(name.c_str(), value->c_str(), 1);
      } else {
        unsetenv(name.c_str());
      }
    }
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  void set(const char* name, const std::string& value) const { setenv(name, value.c_str(), 1); }

 private:
  std::map<std::string, std::optional<std::string>> before_;
};

}  // namespace gptqd::io::test
