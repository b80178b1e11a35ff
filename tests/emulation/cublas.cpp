#include <cublas_v2.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "internal.hpp"

/// @file
/// The part of cuBLAS that examples/cuda_gpt uses: products in stream order, computed by the host
/// in float, operands float or bf16. Operands are copied in and the result out by memcpy, so that
/// sanitizers see what a product reads and writes.

#define SHARDWISE_EMULATED extern "C" __attribute__((visibility("default")))

struct cublasContext {
  cudaStream_t stream = nullptr;
  int device = 0;
};

namespace {

/// One matrix of a batch, columns first, as the caller names it.
struct Matrix {
  const char* data;
  cudaDataType type;
  std::size_t rows;
  std::size_t columns;
  std::size_t leading;
  std::size_t stride;  // elements from one matrix to the next

  [[nodiscard]] std::size_t element_bytes() const { return type == CUDA_R_32F ? 4 : 2; }
  [[nodiscard]] std::size_t bytes(std::size_t count) const {
    if (rows == 0 || columns == 0 || count == 0) return 0;
    return ((count - 1) * stride + (columns - 1) * leading + rows) * element_bytes();
  }
  [[nodiscard]] const char* column(std::size_t batch, std::size_t index) const {
    return data + (batch * stride + index * leading) * element_bytes();
  }
};

struct Product {
  Matrix a;
  Matrix b;
  Matrix c;
  bool transpose_a;
  bool transpose_b;
  float alpha;
  float beta;
  std::size_t inner;
  std::size_t count;
};

float widen(std::uint16_t bits) {
  const std::uint32_t word = std::uint32_t{bits} << 16;
  float value = 0;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

/// To nearest, ties to even.
std::uint16_t narrow(float value) {
  std::uint32_t word = 0;
  std::memcpy(&word, &value, sizeof word);
  if ((word & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(word >> 16 | 0x40u);
  return static_cast<std::uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

/// A matrix in float, dense, column by column.
std::vector<float> read(const Matrix& matrix, std::size_t batch) {
  std::vector<float> values(matrix.rows * matrix.columns);
  std::vector<std::uint16_t> narrow_column(matrix.rows);
  for (std::size_t column = 0; column < matrix.columns; ++column) {
    float* const to = values.data() + column * matrix.rows;
    const char* const from = matrix.column(batch, column);
    if (matrix.type == CUDA_R_32F) {
      std::memcpy(to, from, matrix.rows * sizeof(float));
      continue;
    }
    std::memcpy(narrow_column.data(), from, matrix.rows * sizeof(std::uint16_t));
    for (std::size_t row = 0; row < matrix.rows; ++row) to[row] = widen(narrow_column[row]);
  }
  return values;
}

void write(const Matrix& matrix, std::size_t batch, const std::vector<float>& values) {
  std::vector<std::uint16_t> narrow_column(matrix.rows);
  for (std::size_t column = 0; column < matrix.columns; ++column) {
    const float* const from = values.data() + column * matrix.rows;
    char* const to = const_cast<char*>(matrix.column(batch, column));
    if (matrix.type == CUDA_R_32F) {
      std::memcpy(to, from, matrix.rows * sizeof(float));
      continue;
    }
    for (std::size_t row = 0; row < matrix.rows; ++row) narrow_column[row] = narrow(from[row]);
    std::memcpy(to, narrow_column.data(), matrix.rows * sizeof(std::uint16_t));
  }
}

/// The operand with `inner` elements of a row of op(a), or a column of op(b), side by side.
std::vector<float> read_lines(const Matrix& matrix, bool along_columns, std::size_t batch) {
  std::vector<float> values = read(matrix, batch);
  if (along_columns) return values;
  std::vector<float> turned(values.size());
  for (std::size_t column = 0; column < matrix.columns; ++column) {
    for (std::size_t row = 0; row < matrix.rows; ++row) {
      turned[row * matrix.columns + column] = values[column * matrix.rows + row];
    }
  }
  return turned;
}

void run(const Product& p) {
  for (std::size_t batch = 0; batch < p.count; ++batch) {
    const std::vector<float> a = read_lines(p.a, p.transpose_a, batch);
    const std::vector<float> b = read_lines(p.b, !p.transpose_b, batch);
    // What is not read is not: with beta 0 the result may hold anything before, NaN too.
    std::vector<float> c(p.c.rows * p.c.columns);
    if (p.beta != 0) c = read(p.c, batch);
    for (std::size_t column = 0; column < p.c.columns; ++column) {
      for (std::size_t row = 0; row < p.c.rows; ++row) {
        float sum = 0;
        for (std::size_t k = 0; k < p.inner; ++k) {
          sum += a[row * p.inner + k] * b[column * p.inner + k];
        }
        float& out = c[column * p.c.rows + row];
        out = p.alpha * sum + p.beta * out;
      }
    }
    write(p.c, batch, c);
  }
}

bool is_supported(const Product& p, cublasComputeType_t compute) {
  const auto type = p.a.type;
  return compute == CUBLAS_COMPUTE_32F && p.b.type == type &&
         (type == CUDA_R_32F || type == CUDA_R_16BF) &&
         (p.c.type == CUDA_R_32F || p.c.type == type);
}

/// As cuBLAS: no column overlaps the next.
bool is_valid(const Matrix& matrix) {
  return matrix.leading >= (matrix.rows > 0 ? matrix.rows : 1);
}

std::size_t extent(int value) { return static_cast<std::size_t>(value); }

}  // namespace

SHARDWISE_EMULATED cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  *handle = new cublasContext;
  return cudaGetDevice(&(*handle)->device) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                          : CUBLAS_STATUS_NOT_INITIALIZED;
}

SHARDWISE_EMULATED cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

SHARDWISE_EMULATED cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

SHARDWISE_EMULATED cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t handle, cublasOperation_t transpose_a, cublasOperation_t transpose_b, int m,
    int n, int k, const void* alpha, const void* a, cudaDataType a_type, int a_leading,
    long long a_stride, const void* b, cudaDataType b_type, int b_leading, long long b_stride,
    const void* beta, void* c, cudaDataType c_type, int c_leading, long long c_stride, int count,
    cublasComputeType_t compute, cublasGemmAlgo_t) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (m < 0 || n < 0 || k < 0 || count < 0 || a_leading < 1 || b_leading < 1 || c_leading < 1) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool turn_a = transpose_a != CUBLAS_OP_N;
  const bool turn_b = transpose_b != CUBLAS_OP_N;
  const auto matrix = [](const void* data, cudaDataType type, int rows, int columns, int leading,
                         long long stride) {
    return Matrix{
        static_cast<const char*>(data),  type, extent(rows), extent(columns), extent(leading),
        static_cast<std::size_t>(stride)};
  };
  const Product product{matrix(a, a_type, turn_a ? k : m, turn_a ? m : k, a_leading, a_stride),
                        matrix(b, b_type, turn_b ? n : k, turn_b ? k : n, b_leading, b_stride),
                        matrix(c, c_type, m, n, c_leading, c_stride),
                        turn_a,
                        turn_b,
                        *static_cast<const float*>(alpha),
                        *static_cast<const float*>(beta),
                        extent(k),
                        extent(count)};
  if (!is_supported(product, compute)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!is_valid(product.a) || !is_valid(product.b) || !is_valid(product.c)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const char* const api = "cublasGemmStridedBatchedEx";
  int device = -1;
  if (cudaGetDevice(&device) != cudaSuccess || device != handle->device) {
    emulation::report("%s: the handle is of device %d, the current device is %d", api,
                      handle->device, device);
    return CUBLAS_STATUS_EXECUTION_FAILED;
  }
  for (const Matrix* operand : {&product.a, &product.b, &product.c}) {
    emulation::check_range(api, operand->data, operand->bytes(product.count), device, true);
  }
  // Two floating-point operations a multiplication, at some teraflops: it orders long and short
  // ones.
  const double operations = 2.0 * m * n * k * count;
  emulation::enqueue(
      handle->stream, api, [product] { run(product); }, 5 + operations / 5e6);
  return CUBLAS_STATUS_SUCCESS;
}

SHARDWISE_EMULATED const char* cublasGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "another status";
  }
}

SHARDWISE_EMULATED const char* cublasGetStatusString(cublasStatus_t status) {
  return cublasGetStatusName(status);
}
