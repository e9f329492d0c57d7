// A cblas_sgemm that multiplies one or two rows as vectors and leaves the rest to the BLAS named by TRM_MLX_REAL.
//
// Generating a token is nothing but products of one row. MLX asks for them as matrix products, for which a BLAS packs
// the whole matrix first: up to five times the time of the product itself. `trm_mlx/backend.py` compiles this.

#include <dlfcn.h>

namespace {
enum { row_major = 101, plain = 111, transposed = 112 };
using Gemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
using Gemv = void (*)(int, int, int, int, float, const float*, int, const float*, int, float, float*, int);

void* real() {
    static void* library = dlopen(TRM_MLX_REAL, RTLD_NOW | RTLD_LOCAL);
    return library;
}
const Gemm gemm = real() ? reinterpret_cast<Gemm>(dlsym(real(), "cblas_sgemm")) : nullptr;
const Gemv gemv = real() ? reinterpret_cast<Gemv>(dlsym(real(), "cblas_sgemv")) : nullptr;
}  // namespace

extern "C" int trm_mlx_gemv_ready() { return gemm && gemv; }

extern "C" void cblas_sgemm(
    int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a, int lda,
    const float* b, int ldb, float beta, float* c, int ldc) {
    if (order != row_major || transpose_a != plain || m > 2) {
        gemm(order, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    const bool turned = transpose_b == plain;  // y = B^T x, or B x where B is given transposed
    for (int i = 0; i < m; i++) {
        gemv(
            row_major, turned ? transposed : plain, turned ? k : n, turned ? n : k, alpha, b, ldb,
            a + static_cast<long>(i) * lda, 1, beta, c + static_cast<long>(i) * ldc, 1);
    }
}
