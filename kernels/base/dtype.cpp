#include "kernels/base/dtype.hpp"

#include <array>
#include <utility>

namespace gptqd {

namespace {

constexpr std::array<std::pair<DType, std::string_view>, 13> names{{{DType::f64, "F64"},
                                                                    {DType::f32, "F32"},
                                                                    {DType::f16, "F16"},
                                                                    {DType::bf16, "BF16"},
                                                                    {DType::i64, "I64"},
                                                                    {DType::i32, "I32"},
                                                                    {DType::i16, "I16"},
                                                                    {DType::i8, "I8"},
                                                                    {DType::u64, "U64"},
                                                                    {DType::u32, "U32"},
                                                                    {DType::u16, "U16"},
                                                                    {DType::u8, "U8"},
                                                                    {DType::boolean, "BOOL"}}};

}  // namespace

std::string_view name_of(DType dtype) {
  for (const auto& [value, name] : names) {
    if (value == dtype) {
      return name;
    }
  }
  return "?";
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const auto& [value, known] : names) {
    if (known == name) {
      return value;
    }
  }
  return std::nullopt;
}

}  // namespace gptqd
