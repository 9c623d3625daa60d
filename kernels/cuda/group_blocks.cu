#include "kernels/cuda/cuda_backend.hpp"
#include "kernels/cuda/device.cuh"

namespace gptqd::cuda {

namespace {

/// One entry of the panel's lower part: each pair of columns occurs once, so no two threads write the same place.
/// Groups and members outside the blocks are passed over: expect_inside() reports them.
template <class T>
struct GatherEntry {
  Rows<const T> panel;
  std::int64_t first;
  const std::int32_t* group;
  const std::int32_t* member;
  float* blocks;
  std::int64_t stride;
  std::int64_t groups;
  std::int64_t size;

  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    const std::int64_t g = group[first + c];
    if (r < c || g != group[first + r] || g < 0 || g >= groups) {
      return;
    }
    const std::int64_t a = member[first + r];
    const std::int64_t b = member[first + c];
    if (a >= 0 && a < size && b >= 0 && b < size) {
      const auto value = static_cast<float>(panel.row(r)[c]);
      float* const block = blocks + g * stride;
      block[a * size + b] = value;
      block[b * size + a] = value;
    }
  }
};

void expect_indices(CudaStream& stream, ConstTensorView<std::int32_t, 1> indices, std::int64_t limit,
                    const char* name) {
  expect_inside(stream, indices, 0, limit, [limit, name](const Finding& found) {
    return fmt::format("gather_group_blocks: {}[{}] = {}, expected an index in [0, {})", name, found.position,
                       found.value, limit);
  });
}

}  // namespace

void CudaBackend::run(Stream& stream, const GatherGroupBlocksArgs& args) {
  enqueue(stream, "gather_group_blocks", [&](CudaStream& own) {
    const std::int64_t groups = args.blocks.shape[0];
    const std::int64_t size = args.blocks.shape[1];
    expect_indices(own, args.group, groups, "group");
    expect_indices(own, args.member, size, "member");
    const auto launch = [&]<class T>() {
      for_elements(own, args.panel.rows(), args.panel.cols(),
                   GatherEntry<T>{Rows<const T>(args.panel), args.first, args.group.data, args.member.data,
                                  args.blocks.data, args.blocks.stride, groups, size});
    };
    args.panel.dtype == DType::f64 ? launch.template operator()<double>() : launch.template operator()<float>();
  });
}

}  // namespace gptqd::cuda
