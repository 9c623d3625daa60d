#pragma once
/// @file Hopper's own instructions: copies of tiles by the tensor memory accelerator, barriers in shared memory that
/// count their bytes, and matrix products of a warpgroup (128 threads) from shared memory. PTX ISA 8.0, sm_90a.
///
/// Tiles of 16-bit elements in shared memory are panels of 16, 32 or 64 columns. A panel's rows follow one another, 32,
/// 64 or 128 bytes each, and their 16-byte pieces are permuted within a row by the row's number (the swizzle of so many
/// bytes), so that eight rows of a column lie in different banks. Panels begin at multiples of 1024 bytes.
#include <cuda.h>

#include <array>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace gptqd::cuda::hopper {

inline constexpr int group_threads = 128;  // of a warpgroup

/// A tensor [.., extents[1], extents[0]] for copies of `box` elements of it into a panel, or back; what lies outside reads
/// as zero, and is not written. Innermost extent first; strides, in bytes, of the others.
/// @pre box[0] is panel_columns, of 32, 64 or 128 bytes; data and strides are multiples of 16 bytes
template <int panel_columns, std::size_t rank>
CUtensorMap tensor_map(DType dtype, const void* data, const std::array<std::int64_t, rank>& extents,
                       const std::array<std::int64_t, rank - 1>& strides, const std::array<int, rank>& box) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  // The runtime knows where the driver's function is, so that nothing links against the driver.
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
          "asking the driver for cuTensorMapEncodeTiled");
    require(found == cudaDriverEntryPointSuccess && function != nullptr,
            "CUDA: the driver has no cuTensorMapEncodeTiled; install a driver for CUDA 12 or later");
    return reinterpret_cast<Encode>(function);
  }();
  std::array<cuuint64_t, rank> sizes;
  std::array<cuuint64_t, rank - 1> steps;
  std::array<cuuint32_t, rank> boxes;
  std::array<cuuint32_t, rank> every;
  std::copy(extents.begin(), extents.end(), sizes.begin());
  std::copy(strides.begin(), strides.end(), steps.begin());
  std::copy(box.begin(), box.end(), boxes.begin());
  every.fill(1);
  CUtensorMap map{};
  const std::int64_t row_bytes = panel_columns * size_of(dtype);
  const auto status =
      encode(&map,
             dtype == DType::f32   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
             : dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                   : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
             rank, const_cast<void*>(data), sizes.data(), steps.data(), boxes.data(), every.data(),
             CU_TENSOR_MAP_INTERLEAVE_NONE,
             row_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
             : row_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                               : CU_TENSOR_MAP_SWIZZLE_32B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(status == CUDA_SUCCESS,
          fmt::format("CUDA, describing a tensor {}, innermost extent first, with strides of {} bytes: error {}",
                      to_string(extents), to_string(strides), static_cast<int>(status)));
  return map;
}

/// Whether the compiler's present pass is for a GPU that has the instructions below.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool compiled = true;

// Barriers in shared memory. Phases alternate in parity, the first one's is 0; a barrier that waits for parity 1 at
// first does not wait.

__device__ inline void initialize_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
/// After initializations, before the block synchronizes.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void wait_for(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}
__device__ inline void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives; the phase ends when so many bytes have been written as well.
__device__ inline void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Clusters: blocks that run at once, see each other's barriers, and may receive the same copies.

__device__ inline std::uint32_t block_in_cluster() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline void synchronize_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Arrives at the barrier of that number in another block of the cluster, or this one. For what was read: nothing was
/// written that the other block must see, and releasing to the cluster would cost a barrier over all of the GPU's
/// memory.
__device__ inline void arrive_at_block(std::uint32_t barrier, std::uint32_t block) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(block)
      : "memory");
}
/// A word to the same place in that block, whose barrier counts its four bytes and is arrived at: who waits there sees
/// the word.
__device__ inline void send_to_block(std::uint32_t to, std::uint32_t barrier, std::uint32_t block, std::uint32_t word) {
  asm volatile(
      "{\n.reg .b32 place, remote;\nmapa.shared::cluster.u32 place, %0, %2;\nmapa.shared::cluster.u32 remote, %1, %2;\n"
      "mbarrier.arrive.expect_tx.shared::cluster.b64 _, [remote], 4;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [place], %3, [remote];\n}" ::"r"(to),
      "r"(barrier), "r"(block), "r"(word)
      : "memory");
}

__device__ inline std::uint32_t load_word(std::uint32_t from) {
  std::uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}

__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
/// Copies a box from these coordinates on, innermost first, and counts its bytes at the barrier.
__device__ inline void load_box(std::uint32_t to, const CUtensorMap& map, std::uint32_t barrier, int c0, int c1, int c2,
                                int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

__device__ inline void load_box(std::uint32_t to, const CUtensorMap& map, std::uint32_t barrier, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1)
      : "memory");
}
/// The same into the same place of several blocks of the cluster, those whose bits are set, with their own barriers.
__device__ inline void load_box_for_blocks(std::uint32_t to, const CUtensorMap& map, std::uint32_t barrier, int c0,
                                           int c1, std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4}], [%2], %5;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "h"(blocks)
      : "memory");
}

// From shared memory to a tensor, by one thread: fence_for_copies() by those who wrote there, a barrier among them,
// copies, end_stores() (a batch). Whether a batch writes or adds before another is not said unless one waits.

__device__ inline void fence_for_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void store_box(const CUtensorMap& map, std::uint32_t from, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(from),
               "r"(c0), "r"(c1)
               : "memory");
}
/// Adds in fp32, rounded to nearest, where the memory is.
__device__ inline void add_box(const CUtensorMap& map, std::uint32_t from, int c0, int c1) {
  asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(from), "r"(c0), "r"(c1)
               : "memory");
}
__device__ inline void end_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until at most `pending` of this thread's last batches have not been written; or not even read from shared memory.
template <int pending>
__device__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}
template <int pending>
__device__ void wait_for_reads_of_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

/// Registers a thread of this warpgroup may use from here on; every warp of it calls.
template <int registers>
__device__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ void yield_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// Matrix products: begin_products(), products, end_products() (a batch), wait_for_products(). Until then neither the
// sums nor operands in registers may be touched; keep() afterwards tells the compiler.

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most `pending` of the last batches are not done.
template <int pending>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
template <int count>
__device__ void keep(float (&values)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    asm volatile("" : "+f"(values[i])::"memory");
  }
}
template <int rows, int count>
__device__ void keep(std::uint32_t (&values)[rows][count]) {
#pragma unroll
  for (int i = 0; i < rows * count; ++i) {
    asm volatile("" : "+r"(values[i / count][i % count])::"memory");
  }
}

/// Where a factor lies in shared memory.
struct Factor {
  std::uint64_t bits;

  /// Columns are the terms, rows those (or the columns) of the result. In a panel, term 16·i is 32·i bytes on.
  template <int panel_columns>
  __device__ static Factor terms_in_columns(std::uint32_t address) {
    return {common<panel_columns>(address) | std::uint64_t{1} << 16};
  }
  /// Rows are the terms, columns those of the result; panels `panel_bytes` apart. Term 8·i is eight rows · i on.
  template <int panel_columns>
  __device__ static Factor terms_in_rows(std::uint32_t address, int panel_bytes) {
    return {common<panel_columns>(address) | static_cast<std::uint64_t>(panel_bytes >> 4) << 16};
  }
  __device__ Factor operator+(int bytes) const { return {bits + static_cast<std::uint64_t>(bytes >> 4)}; }

 private:
  template <int panel_columns>
  __device__ static std::uint64_t common(std::uint32_t address) {
    static_assert(panel_columns == 16 || panel_columns == 32 || panel_columns == 64);
    constexpr std::uint64_t swizzle = panel_columns == 64 ? 1 : panel_columns == 32 ? 2 : 3;
    constexpr std::uint64_t eight_rows = 8 * 2 * panel_columns;
    return (address & 0x3ffff) >> 4 | (eight_rows >> 4) << 32 | swizzle << 62;
  }
};

// The instruction names each register of its sums.
#define GPTQD_NAMES_32                                                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GPTQD_NAMES_40 GPTQD_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define GPTQD_NAMES_48 GPTQD_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define GPTQD_NAMES_64 GPTQD_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define GPTQD_NAMES_128                                                                                             \
  GPTQD_NAMES_64                                                                                                    \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, "     \
  "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, " \
  "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, "    \
  "%124, %125, %126, %127"
#define GPTQD_SUMS_8(i)                                                                                         \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define GPTQD_SUMS_32 GPTQD_SUMS_8(0), GPTQD_SUMS_8(8), GPTQD_SUMS_8(16), GPTQD_SUMS_8(24)
#define GPTQD_SUMS_40 GPTQD_SUMS_32, GPTQD_SUMS_8(32)
#define GPTQD_SUMS_48 GPTQD_SUMS_40, GPTQD_SUMS_8(40)
#define GPTQD_SUMS_64 GPTQD_SUMS_48, GPTQD_SUMS_8(48), GPTQD_SUMS_8(56)
#define GPTQD_SUMS_128                                                                                     \
  GPTQD_SUMS_64, GPTQD_SUMS_8(64), GPTQD_SUMS_8(72), GPTQD_SUMS_8(80), GPTQD_SUMS_8(88), GPTQD_SUMS_8(96), \
      GPTQD_SUMS_8(104), GPTQD_SUMS_8(112), GPTQD_SUMS_8(120)
/// sums (+)= a · b, both in shared memory, terms in columns. `a_name`, `b_name` and `add_name` number the operands.
#define GPTQD_MULTIPLY_SHARED(type, columns, count, a_name, b_name, add_name)                                     \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_name ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns \
               "k16.f32." type "." type " {" GPTQD_NAMES_##count "}, " a_name ", " b_name ", add, 1, 1, 0, 0;\n}" \
               : GPTQD_SUMS_##count                                                                               \
               : "l"(a.bits), "l"(b.bits), "n"(add ? 1 : 0))
/// sums += a · b, a in registers, the terms of b in rows.
#define GPTQD_MULTIPLY_REGISTERS(type, columns, count, a0, a1, a2, a3, b_name)                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" GPTQD_NAMES_##count \
               "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b_name ", 1, 1, 1, 1;"                                \
               : GPTQD_SUMS_##count                                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits))

/// The same with the terms of b in rows, and those of a where `a_rows` is "1".
#define GPTQD_MULTIPLY_SHARED_ROWS(type, columns, count, a_rows, a_name, b_name, add_name)                        \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_name ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns \
               "k16.f32." type "." type " {" GPTQD_NAMES_##count "}, " a_name ", " b_name ", add, 1, 1, " a_rows  \
                                                                 ", 1;\n}"                                        \
               : GPTQD_SUMS_##count                                                                               \
               : "l"(a.bits), "l"(b.bits), "r"(static_cast<int>(add)))

/// sums [64, 128] <- a [64, 16] · b [128, 16]ᵀ, or with `add` sums + that. T is __half or __nv_bfloat16.
///
/// Of each 64x8 tile t of sums thread i holds, from sums[4·t] on, row 16·(i / 32) + i % 32 / 4, columns 2·(i % 4) and
/// the next, and the same 8 rows further down.
template <class T, bool add>
__device__ void multiply(float (&sums)[64], Factor a, Factor b) {
  if constexpr (std::is_same_v<T, __half>) {
    GPTQD_MULTIPLY_SHARED("f16", "128", 64, "%64", "%65", "%66");
  } else {
    GPTQD_MULTIPLY_SHARED("bf16", "128", 64, "%64", "%65", "%66");
  }
}

/// sums [64, 2·count] <- a [16, 64]ᵀ · b [16, 2·count], or with `add` sums + that: both factors have their terms in
/// rows.
template <class T, int count>
__device__ void multiply_rows(float (&sums)[count], Factor a, Factor b, bool add) {
  static_assert(count == 64 || count == 128);
  if constexpr (std::is_same_v<T, __half>) {
    if constexpr (count == 64) {
      GPTQD_MULTIPLY_SHARED_ROWS("f16", "128", 64, "1", "%64", "%65", "%66");
    } else {
      GPTQD_MULTIPLY_SHARED_ROWS("f16", "256", 128, "1", "%128", "%129", "%130");
    }
  } else {
    if constexpr (count == 64) {
      GPTQD_MULTIPLY_SHARED_ROWS("bf16", "128", 64, "1", "%64", "%65", "%66");
    } else {
      GPTQD_MULTIPLY_SHARED_ROWS("bf16", "256", 128, "1", "%128", "%129", "%130");
    }
  }
}

/// sums [64, 256] <- a [64, 16] · b [16, 256], or with `add` sums + that: the terms of a in columns, those of b in
/// rows.
template <class T>
__device__ void multiply_by_rows(float (&sums)[128], Factor a, Factor b, bool add) {
  if constexpr (std::is_same_v<T, __half>) {
    GPTQD_MULTIPLY_SHARED_ROWS("f16", "256", 128, "0", "%128", "%129", "%130");
  } else {
    GPTQD_MULTIPLY_SHARED_ROWS("bf16", "256", 128, "0", "%128", "%129", "%130");
  }
}

/// sums [64, 2·count] += a [64, 16] · b [16, 2·count]. `a` as two 64x8 tiles of sums rounded to T: low and high halves
/// of a register are neighbours in a row.
template <class T, int count>
__device__ void multiply(float (&sums)[count], const std::uint32_t (&a)[4], Factor b) {
  static_assert(count == 32 || count == 40 || count == 48 || count == 64);
  if constexpr (std::is_same_v<T, __half>) {
    if constexpr (count == 32) {
      GPTQD_MULTIPLY_REGISTERS("f16", "64", 32, "%32", "%33", "%34", "%35", "%36");
    } else if constexpr (count == 40) {
      GPTQD_MULTIPLY_REGISTERS("f16", "80", 40, "%40", "%41", "%42", "%43", "%44");
    } else if constexpr (count == 48) {
      GPTQD_MULTIPLY_REGISTERS("f16", "96", 48, "%48", "%49", "%50", "%51", "%52");
    } else {
      GPTQD_MULTIPLY_REGISTERS("f16", "128", 64, "%64", "%65", "%66", "%67", "%68");
    }
  } else {
    if constexpr (count == 32) {
      GPTQD_MULTIPLY_REGISTERS("bf16", "64", 32, "%32", "%33", "%34", "%35", "%36");
    } else if constexpr (count == 40) {
      GPTQD_MULTIPLY_REGISTERS("bf16", "80", 40, "%40", "%41", "%42", "%43", "%44");
    } else if constexpr (count == 48) {
      GPTQD_MULTIPLY_REGISTERS("bf16", "96", 48, "%48", "%49", "%50", "%51", "%52");
    } else {
      GPTQD_MULTIPLY_REGISTERS("bf16", "128", 64, "%64", "%65", "%66", "%67", "%68");
    }
  }
}

#undef GPTQD_MULTIPLY_REGISTERS
#undef GPTQD_MULTIPLY_SHARED_ROWS
#undef GPTQD_MULTIPLY_SHARED
#undef GPTQD_SUMS_128
#undef GPTQD_SUMS_64
#undef GPTQD_SUMS_48
#undef GPTQD_SUMS_40
#undef GPTQD_SUMS_32
#undef GPTQD_SUMS_8
#undef GPTQD_NAMES_128
#undef GPTQD_NAMES_64
#undef GPTQD_NAMES_48
#undef GPTQD_NAMES_40
#undef GPTQD_NAMES_32
#else
inline constexpr bool compiled = false;
#endif

}  // namespace gptqd::cuda::hopper
