#pragma once
/// @file The subcommands. Each parses its own arguments, runs, and returns the exit code.
#include "jobs/command_line.hpp"

namespace gptqd::jobs {

int quantize_command(const Arguments& arguments);
int status_command(const Arguments& arguments);
int merge_command(const Arguments& arguments);
int convert_command(const Arguments& arguments);
int plan_command(const Arguments& arguments);
int eval_command(const Arguments& arguments);
int tokenize_command(const Arguments& arguments);
int verify_command(const Arguments& arguments);

}  // namespace gptqd::jobs
