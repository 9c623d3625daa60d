#pragma once
/// @file Typed, row-major, 64-bit wrappers of the BLAS and LAPACK routines that the CPU backend calls.
///
/// Meant to be called from several threads of the pool at once, each on its own tile, with OpenBLAS single-threaded.
/// Leading dimensions are row strides in elements. A size that does not fit OpenBLAS's int is an Error (internal).
#include <cstdint>
#include <string>

namespace gptqd::blas {

enum class Op : bool { none, transpose };
enum class Triangle : bool { lower, upper };
enum class Side : bool { left, right };

/// C <- alpha·op(A)·op(B) + beta·C, op(A) [m, k], op(B) [k, n], C [m, n]. With beta = 0 C is not read.
void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
          std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc);
void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha, const double* a,
          std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c, std::int64_t ldc);

/// C <- alpha·op(A)·op(A)ᵀ + beta·C, op(A) [n, k], one triangle of C [n, n]; the other is not touched.
void syrk(Triangle triangle, Op op_a, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t lda,
          float beta, float* c, std::int64_t ldc);
void syrk(Triangle triangle, Op op_a, std::int64_t n, std::int64_t k, double alpha, const double* a, std::int64_t lda,
          double beta, double* c, std::int64_t ldc);

/// B <- alpha·op(A)⁻¹·B (left) or alpha·B·op(A)⁻¹ (right), B [m, n], A triangular with its own diagonal.
void trsm(Side side, Triangle triangle, Op op_a, std::int64_t m, std::int64_t n, float alpha, const float* a,
          std::int64_t lda, float* b, std::int64_t ldb);
void trsm(Side side, Triangle triangle, Op op_a, std::int64_t m, std::int64_t n, double alpha, const double* a,
          std::int64_t lda, double* b, std::int64_t ldb);

/// A = L·Lᵀ (lower) or Uᵀ·U (upper), in place in that triangle; the other is not touched.
/// @return 0, or the 1-based leading minor that is not positive definite
std::int64_t potrf(Triangle triangle, std::int64_t n, float* a, std::int64_t lda);
std::int64_t potrf(Triangle triangle, std::int64_t n, double* a, std::int64_t lda);

/// A <- A⁻¹ of a triangular matrix, in place. @return 0, or the 1-based position of a zero on the diagonal
std::int64_t trtri(Triangle triangle, std::int64_t n, float* a, std::int64_t lda);
std::int64_t trtri(Triangle triangle, std::int64_t n, double* a, std::int64_t lda);

/// From a potrf factor to the inverse of the factored matrix, in place in the same triangle.
/// @return 0, or the 1-based position of a zero on the diagonal
std::int64_t potri(Triangle triangle, std::int64_t n, float* a, std::int64_t lda);
std::int64_t potri(Triangle triangle, std::int64_t n, double* a, std::int64_t lda);

/// Makes OpenBLAS use the calling thread alone, from here on, in the whole process.
void set_single_threaded();

}  // namespace gptqd::blas

namespace gptqd {

/// "openblas 0.3.21 SkylakeX": version and kernel set, which decide the bits of results.
std::string blas_description();

/// Has OpenBLAS use AVX-512 kernels where the CPU has them and OpenBLAS did not see it: versions that do not know a new
/// CPU fall back to Haswell kernels at half the speed. OpenBLAS decides when it is loaded, so this sets
/// OPENBLAS_CORETYPE and starts the program again (execv, same process, same arguments). An OPENBLAS_CORETYPE that is
/// set stays. Call it first in main, before MPI. Returns where nothing has to change, or where execv fails.
void choose_blas_kernels(char** argv);

}  // namespace gptqd
