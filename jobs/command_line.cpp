#include "jobs/command_line.hpp"

#include <fmt/format.h>

#include <fstream>
#include <sstream>

#include "comm/world.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

void print_once(const std::string& text) {
  if (comm::launcher_rank() == 0) {
    fmt::print("{}", text);
  }
}

CommandLine::CommandLine(std::string command, std::string usage, std::string positional)
    : command_(std::move(command)), usage_(std::move(usage)), positional_(std::move(positional)), options_(100, 50) {
  po::options_description general("General", 100, 50);
  general.add_options()("config", po::value<std::string>()->value_name("FILE"),
                        "read options from FILE, lines `name = value`; the command line wins")("help,h",
                                                                                               "print this text");
  options_.add(general);
}

bool CommandLine::parse(const Arguments& arguments) {
  try {
    po::command_line_parser parser(arguments);
    // No guessing: an abbreviation that works today would mean another option tomorrow.
    parser.options(options_).style(po::command_line_style::unix_style & ~po::command_line_style::allow_guessing);
    po::positional_options_description positional;
    if (!positional_.empty()) {
      positional.add(positional_.c_str(), 1);
    }
    parser.positional(positional);
    po::store(parser.run(), values_);
    if (values_.count("help") != 0) {
      std::ostringstream text;
      text << usage_ << "\n" << options_;
      print_once(text.str());
      return false;
    }
    if (values_.count("config") != 0) {
      const auto& path = values_["config"].as<std::string>();
      std::ifstream file(path);
      if (!file) {
        throw Error(ErrorKind::usage, fmt::format("--config {}: cannot be opened; give an existing file", path));
      }
      po::store(po::parse_config_file(file, options_), values_);
    }
    po::notify(values_);
  } catch (const po::error& error) {
    throw Error(ErrorKind::usage, fmt::format("{}; see gptq-dist {} --help", error.what(), command_));
  }
  return true;
}

}  // namespace gptqd::jobs
