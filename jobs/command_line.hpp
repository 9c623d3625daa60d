#pragma once
/// @file Parsing of one subcommand's options, the same way for all of them.
#include <boost/program_options.hpp>
#include <functional>
#include <string>
#include <vector>

namespace gptqd::jobs {

using Arguments = std::vector<std::string>;

/// Prints `text` on the launcher's rank 0 alone.
void print_once(const std::string& text);

/// Options of the command line over those of --config FILE over defaults.
///
/// Adds --config and --help. Returns nothing when --help was asked for and printed.
/// @param usage       first lines of --help
/// @param positional  name of the option that words without dashes fill, or empty
/// @throws Error (usage) naming what is not understood
class CommandLine {
 public:
  CommandLine(std::string command, std::string usage, std::string positional = "");

  /// A headed group of options in --help.
  void add(const boost::program_options::options_description& group) { options_.add(group); }
  /// False when --help was printed.
  bool parse(const Arguments& arguments);

  bool given(const std::string& option) const { return values_.count(option) != 0 && !values_[option].defaulted(); }
  bool has(const std::string& option) const { return values_.count(option) != 0; }
  template <class T>
  const T& get(const std::string& option) const {
    return values_[option].as<T>();
  }
  bool flag(const std::string& option) const { return values_[option].as<bool>(); }

 private:
  std::string command_;
  std::string usage_;
  std::string positional_;
  boost::program_options::options_description options_;
  boost::program_options::variables_map values_;
};

}  // namespace gptqd::jobs
