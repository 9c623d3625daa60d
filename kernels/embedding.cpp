#include "kernels/embedding.hpp"

#include "kernels/disjoint.hpp"

namespace gptqd {

void validate(const EmbeddingArgs& args) {
  constexpr auto operation = "embedding";
  checks::expect_tensor(args.ids, args.ids.shape, operation, "ids");
  checks::expect_tensor(args.table, args.table.shape, {DType::f64, DType::f32, DType::f16, DType::bf16}, operation,
                        "table");
  checks::expect_tensor(args.y, Shape<2>{args.ids.rows(), args.table.cols()}, {DType::f32, DType::f16, DType::bf16},
                        operation, "y");
  checks::expect_disjoint(args.y, "y", args.table, "table", operation);
}

}  // namespace gptqd
