#include "gptq/quant_spec.hpp"

#include <fmt/ranges.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace gptqd::gptq {

namespace {

template <class Enum>
struct Named {
  Enum value;
  std::string_view name;
};

constexpr std::array<Named<ActOrder>, 3> act_orders{
    {{ActOrder::none, "none"}, {ActOrder::fixed, "static"}, {ActOrder::dynamic, "dynamic"}}};
constexpr std::array<Named<Method>, 3> methods{{{Method::gptq, "gptq"}, {Method::rtn, "rtn"}, {Method::obq, "obq"}}};
constexpr std::array<Named<Clip>, 3> clips{{{Clip::none, "none"}, {Clip::mse, "mse"}, {Clip::hessian, "hessian"}}};
constexpr std::array<Named<ScaleFormat>, 2> scale_formats{
    {{ScaleFormat::f16, "f16"}, {ScaleFormat::bf16_and_f16, "bf16_and_f16"}}};

template <class Enum, std::size_t N>
std::string_view find_name(const std::array<Named<Enum>, N>& table, Enum value) {
  for (const auto& entry : table) {
    if (entry.value == value) {
      return entry.name;
    }
  }
  throw Error(ErrorKind::internal, fmt::format("quantization settings: no name for value {}", static_cast<int>(value)));
}

template <class Enum, std::size_t N>
Enum find_value(const std::array<Named<Enum>, N>& table, std::string_view option, std::string_view name) {
  std::vector<std::string_view> names;
  for (const auto& entry : table) {
    if (entry.name == name) {
      return entry.value;
    }
    names.push_back(entry.name);
  }
  throw Error(ErrorKind::usage,
              fmt::format("{}: got \"{}\", expected one of {}", option, name, fmt::join(names, ", ")));
}

[[noreturn]] void refuse(std::string message) { throw Error(ErrorKind::usage, std::move(message)); }

}  // namespace

GridSpec QuantSpec::grid() const {
  return {.bits = bits,
          .symmetric = symmetric,
          .clip = clip,
          .scale_format = scale_format,
          .published_symmetric = reference};
}

bool QuantSpec::dynamic_grids() const {
  return method == Method::gptq && group_size > 0 && act_order != ActOrder::fixed;
}

void validate(const QuantSpec& spec) {
  if (spec.bits != 2 && spec.bits != 3 && spec.bits != 4 && spec.bits != 8) {
    refuse(fmt::format("--bits: got {}, expected 2, 3, 4 or 8", spec.bits));
  }
  if (spec.group_size != -1 && (spec.group_size <= 0 || spec.group_size % 8 != 0)) {
    refuse(fmt::format("--group-size: got {}, expected -1 (one group a row) or a positive multiple of 8 (32, 64, 128)",
                       spec.group_size));
  }
  if (!(spec.damping > 0 && spec.damping <= 1)) {
    refuse(fmt::format("--damping: got {}, expected a number above 0 and at most 1 (default 0.01)", spec.damping));
  }
  if (!(spec.dead_diagonal > 0) || !std::isfinite(spec.dead_diagonal)) {
    refuse(fmt::format("dead_diagonal: got {}, expected a positive number", spec.dead_diagonal));
  }
  if (spec.solver != DType::f32 && spec.solver != DType::f64) {
    refuse(fmt::format("--solver: got {}, expected f32 or f64", gptqd::name_of(spec.solver)));
  }
  if (spec.clip == Clip::hessian && (spec.group_size < 0 || spec.group_size > longest_hessian_clip_group)) {
    refuse(
        fmt::format("--clip hessian needs the Hessian's diagonal block of every group: got --group-size {}, expected 8 "
                    "to {}; take such a group size, or --clip mse",
                    spec.group_size, longest_hessian_clip_group));
  }
  if (spec.act_order == ActOrder::dynamic && spec.method != Method::gptq) {
    refuse(
        fmt::format("--method {} quantizes on grids found before it starts, so --act-order dynamic has no meaning for "
                    "it: take --act-order static or none",
                    name_of(spec.method)));
  }
}

nlohmann::json to_json(const QuantSpec& spec) {
  return {{"bits", spec.bits},
          {"group_size", spec.group_size},
          {"symmetric", spec.symmetric},
          {"act_order", name_of(spec.act_order)},
          {"clip", name_of(spec.clip)},
          {"method", name_of(spec.method)},
          {"damping", spec.damping},
          {"reference", spec.reference},
          {"dead_diagonal", spec.dead_diagonal},
          {"scale_format", find_name(scale_formats, spec.scale_format)},
          {"solver", spec.solver == DType::f64 ? "f64" : "f32"}};
}

Clip default_clip(Method method, std::int64_t group_size) {
  const bool short_groups = group_size > 0 && group_size <= longest_hessian_clip_group;
  return method != Method::rtn && short_groups ? Clip::hessian : Clip::mse;
}

std::string_view name_of(ActOrder order) { return find_name(act_orders, order); }
std::string_view name_of(Method method) { return find_name(methods, method); }
std::string_view name_of(Clip clip) { return find_name(clips, clip); }

ActOrder act_order_from_name(std::string_view name) { return find_value(act_orders, "--act-order", name); }
Method method_from_name(std::string_view name) { return find_value(methods, "--method", name); }
Clip clip_from_name(std::string_view name) { return find_value(clips, "--clip", name); }

void validate(const Partition& partition) {
  if (partition.leaves < 1 || (partition.leaves & (partition.leaves - 1)) != 0) {
    refuse(fmt::format("--hessian-leaves: got {}, expected a power of two", partition.leaves));
  }
  if (partition.panel_columns < 1 || partition.row_tile < 1) {
    refuse(fmt::format("partition: got panels of {} columns and tiles of {} rows, expected positive numbers",
                       partition.panel_columns, partition.row_tile));
  }
}

nlohmann::json Partition::to_json() const {
  return {{"leaves", leaves}, {"panel_columns", panel_columns}, {"row_tile", row_tile}};
}

}  // namespace gptqd::gptq
