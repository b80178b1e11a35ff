#include "products.hpp"

#include <cublas_v2.h>
#include <fmt/format.h>

#include <limits>
#include <stdexcept>

namespace cuda_gpt {
namespace {

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(fmt::format("{}: {} ({}): {}", call, cublasGetStatusName(status),
                                       static_cast<int>(status), cublasGetStatusString(status)));
}

int extent(std::size_t value) {
  if (value <= static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    return static_cast<int>(value);
  }
  throw std::invalid_argument(
      fmt::format("a matrix has an extent of {}; this call of cuBLAS takes up to {}: give a "
                  "smaller --batch or more --micro-batches",
                  value, std::numeric_limits<int>::max()));
}

cudaDataType type_of(shardwise::DType type) {
  if (type == shardwise::DType::f32) return CUDA_R_32F;
  if (type == shardwise::DType::bf16) return CUDA_R_16BF;
  throw std::invalid_argument(
      fmt::format("products are of f32 or bf16, not of {}", std::string(shardwise::name_of(type))));
}

}  // namespace

struct Products::Handle {
  explicit Handle(cudaStream_t stream) {
    check(cublasCreate(&native), "cublasCreate");
    try {
      check(cublasSetStream(native, stream), "cublasSetStream");
    } catch (...) {
      cublasDestroy(native);
      throw;
    }
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { cublasDestroy(native); }

  cublasHandle_t native = nullptr;
};

Products::Products(cudaStream_t stream) : handle_(std::make_unique<Handle>(stream)) {}
Products::~Products() = default;

void Products::enqueue(const Operand& a, bool transpose_a, const Operand& b, bool transpose_b,
                       const Result& c, Into into) {
  const std::size_t inner = transpose_a ? a.rows : a.columns;
  if ((transpose_a ? a.columns : a.rows) != c.rows || (transpose_b ? b.columns : b.rows) != inner ||
      (transpose_b ? b.rows : b.columns) != c.columns || a.count != c.count || b.count != c.count) {
    throw std::invalid_argument(fmt::format(
        "a product of {} matrices {} x {}{} and {} matrices {} x {}{} has not {} results {} x {}",
        a.count, a.rows, a.columns, transpose_a ? ", transposed," : "", b.count, b.rows, b.columns,
        transpose_b ? ", transposed," : "", c.count, c.rows, c.columns));
  }
  // cuBLAS stores columns first. A row-major matrix is there its transpose, and cᵀ = bᵀ aᵀ: the
  // operands change places, and each row-major stride is a leading dimension.
  const float one = 1;
  const float keep = into == Into::add ? 1.0f : 0.0f;
  const auto stride = [](const auto& matrix) {
    return static_cast<long long>(matrix.rows * matrix.columns);
  };
  check(cublasGemmStridedBatchedEx(
            handle_->native, transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
            transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, extent(c.columns), extent(c.rows),
            extent(inner), &one, b.data, type_of(b.type), extent(b.columns), stride(b), a.data,
            type_of(a.type), extent(a.columns), stride(a), &keep, c.data, type_of(c.type),
            extent(c.columns), stride(c), extent(c.count), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "cublasGemmStridedBatchedEx");
}

}  // namespace cuda_gpt
