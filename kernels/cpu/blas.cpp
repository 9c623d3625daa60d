#include "kernels/cpu/blas.hpp"

#include <cblas.h>
#include <lapack.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <string_view>

#include "kernels/base/error.hpp"

namespace gptqd {

namespace blas {

namespace {

blasint narrow(std::int64_t size) {
  if (size < 0 || size > std::numeric_limits<blasint>::max()) {
    throw Error(ErrorKind::internal, fmt::format("blas: size {} does not fit its integers (at most {})", size,
                                                 std::numeric_limits<blasint>::max()));
  }
  return static_cast<blasint>(size);
}

/// A leading dimension: BLAS wants at least 1 for empty matrices too.
blasint narrow_stride(std::int64_t stride) { return narrow(stride == 0 ? 1 : stride); }

CBLAS_TRANSPOSE cblas(Op op) { return op == Op::none ? CblasNoTrans : CblasTrans; }
CBLAS_UPLO cblas(Triangle triangle) { return triangle == Triangle::lower ? CblasLower : CblasUpper; }
CBLAS_SIDE cblas(Side side) { return side == Side::left ? CblasLeft : CblasRight; }

/// LAPACK sees row-major matrices transposed: its triangle is the other one, and nothing has to be moved.
const char* lapack(Triangle triangle) { return triangle == Triangle::lower ? "U" : "L"; }

/// Calls a routine (triangle, n, a, lda, info) and reads its info.
template <class T, class Routine>
std::int64_t call_lapack(const char* name, std::int64_t n, T* a, std::int64_t lda, const Routine& routine) {
  const lapack_int size = narrow(n);
  const lapack_int stride = narrow_stride(lda);
  lapack_int info = 0;
  routine(&size, a, &stride, &info);
  require(info >= 0, fmt::format("{}: argument {} is invalid (n {}, row stride {})", name, -info, n, lda));
  return info;
}

}  // namespace

void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
          std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  cblas_sgemm(CblasRowMajor, cblas(op_a), cblas(op_b), narrow(m), narrow(n), narrow(k), alpha, a, narrow_stride(lda), b,
              narrow_stride(ldb), beta, c, narrow_stride(ldc));
}

void gemm(Op op_a, Op op_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha, const double* a,
          std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c, std::int64_t ldc) {
  cblas_dgemm(CblasRowMajor, cblas(op_a), cblas(op_b), narrow(m), narrow(n), narrow(k), alpha, a, narrow_stride(lda), b,
              narrow_stride(ldb), beta, c, narrow_stride(ldc));
}

void syrk(Triangle triangle, Op op_a, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t lda,
          float beta, float* c, std::int64_t ldc) {
  cblas_ssyrk(CblasRowMajor, cblas(triangle), cblas(op_a), narrow(n), narrow(k), alpha, a, narrow_stride(lda), beta, c,
              narrow_stride(ldc));
}

void syrk(Triangle triangle, Op op_a, std::int64_t n, std::int64_t k, double alpha, const double* a, std::int64_t lda,
          double beta, double* c, std::int64_t ldc) {
  cblas_dsyrk(CblasRowMajor, cblas(triangle), cblas(op_a), narrow(n), narrow(k), alpha, a, narrow_stride(lda), beta, c,
              narrow_stride(ldc));
}

void trsm(Side side, Triangle triangle, Op op_a, std::int64_t m, std::int64_t n, float alpha, const float* a,
          std::int64_t lda, float* b, std::int64_t ldb) {
  cblas_strsm(CblasRowMajor, cblas(side), cblas(triangle), cblas(op_a), CblasNonUnit, narrow(m), narrow(n), alpha, a,
              narrow_stride(lda), b, narrow_stride(ldb));
}

void trsm(Side side, Triangle triangle, Op op_a, std::int64_t m, std::int64_t n, double alpha, const double* a,
          std::int64_t lda, double* b, std::int64_t ldb) {
  cblas_dtrsm(CblasRowMajor, cblas(side), cblas(triangle), cblas(op_a), CblasNonUnit, narrow(m), narrow(n), alpha, a,
              narrow_stride(lda), b, narrow_stride(ldb));
}

std::int64_t potrf(Triangle triangle, std::int64_t n, float* a, std::int64_t lda) {
  return call_lapack("spotrf", n, a, lda,
                     [&](const lapack_int* size, float* data, const lapack_int* stride, lapack_int* info) {
                       LAPACK_spotrf(lapack(triangle), size, data, stride, info);
                     });
}

std::int64_t potrf(Triangle triangle, std::int64_t n, double* a, std::int64_t lda) {
  return call_lapack("dpotrf", n, a, lda,
                     [&](const lapack_int* size, double* data, const lapack_int* stride, lapack_int* info) {
                       LAPACK_dpotrf(lapack(triangle), size, data, stride, info);
                     });
}

std::int64_t trtri(Triangle triangle, std::int64_t n, float* a, std::int64_t lda) {
  return call_lapack("strtri", n, a, lda,
                     [&](const lapack_int* size, float* data, const lapack_int* stride, lapack_int* info) {
                       LAPACK_strtri(lapack(triangle), "N", size, data, stride, info);
                     });
}

std::int64_t trtri(Triangle triangle, std::int64_t n, double* a, std::int64_t lda) {
  return call_lapack("dtrtri", n, a, lda,
                     [&](const lapack_int* size, double* data, const lapack_int* stride, lapack_int* info) {
                       LAPACK_dtrtri(lapack(triangle), "N", size, data, stride, info);
                     });
}

std::int64_t potri(Triangle triangle, std::int64_t n, float* a, std::int64_t lda) {
  return call_lapack("spotri", n, a, lda,
                     [&](const lapack_int* size, float* data, const lapack_int* stride, lapack_int* info) {
                       LAPACK_spotri(lapack(triangle), size, data, stride, info);
                     });
}

std::int64_t potri(Triangle triangle, std::int64_t n, double* a, std::int64_t lda) {
  return call_lapack("dpotri", n, a, lda,
                     [&](const lapack_int* size, double* data, const lapack_int* stride, lapack_int* info) {
                       LAPACK_dpotri(lapack(triangle), size, data, stride, info);
                     });
}

void set_single_threaded() { openblas_set_num_threads(1); }

}  // namespace blas

std::string blas_description() {
  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH NO_AFFINITY Haswell MAX_THREADS=64"
  std::istringstream words(openblas_get_config());
  std::string name;
  std::string version;
  words >> name >> version;
  return fmt::format("openblas {} {}", version, openblas_get_corename());
}

void choose_blas_kernels(char** argv) {
  // Set by the first of the two starts: a second one never follows, whatever OpenBLAS makes of the request.
  constexpr const char* guard = "GPTQD_BLAS_KERNELS_CHOSEN";
  constexpr std::array<std::string_view, 3> avx512_cores{"SkylakeX", "Cooperlake", "SapphireRapids"};
  if (std::getenv("OPENBLAS_CORETYPE") != nullptr || std::getenv(guard) != nullptr) {
    return;
  }
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const std::string_view core = openblas_get_corename();
  for (const auto name : avx512_cores) {
    if (core == name) {
      return;
    }
  }
  if (!has_avx512 || setenv(guard, "1", 1) != 0 || setenv("OPENBLAS_CORETYPE", "SkylakeX", 1) != 0) {
    return;
  }
  execv("/proc/self/exe", argv);
  // Not started again: children must not inherit a request that this process does not follow.
  unsetenv("OPENBLAS_CORETYPE");
}

}  // namespace gptqd
