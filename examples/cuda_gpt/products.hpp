#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <shardwise/core/dtype.hpp>
#include <type_traits>

namespace cuda_gpt {

/// A dense row-major matrix in device memory, or `count` of them one behind the other.
template <class Void>
struct DeviceMatrix {
  template <class T>
  DeviceMatrix(T* first, std::size_t row_count, std::size_t column_count,
               std::size_t matrix_count = 1)
      : data(first),
        type(shardwise::dtype_of<std::remove_const_t<T>>),
        rows(row_count),
        columns(column_count),
        count(matrix_count) {}

  Void* data;
  shardwise::DType type;
  std::size_t rows;
  std::size_t columns;
  std::size_t count;
};
using Operand = DeviceMatrix<const void>;
using Result = DeviceMatrix<void>;

/// What becomes of the values that the result has.
enum class Into : std::uint8_t { overwrite, add };

/// All matrix products of the program, by cuBLAS, in stream order; the host does not wait. The one
/// place to change for another library of products. Operands are both float or both bf16; a product
/// of floats is float, one of bf16 float or bf16. Sums are in float, rounded once. Several
/// matrices: the products of the first ones, of the second ones, ... Throws std::runtime_error
/// where cuBLAS refuses and std::invalid_argument where the shapes do not fit.
class Products {
 public:
  /// On the host thread's current device, whose stream this is; it must outlive the products.
  explicit Products(cudaStream_t stream);
  ~Products();

  /// c = a b
  void multiply(const Operand& a, const Operand& b, const Result& c, Into into = Into::overwrite) {
    enqueue(a, false, b, false, c, into);
  }
  /// c = a bᵀ
  void multiply_by_transpose(const Operand& a, const Operand& b, const Result& c,
                             Into into = Into::overwrite) {
    enqueue(a, false, b, true, c, into);
  }
  /// c = aᵀ b
  void multiply_transpose_by(const Operand& a, const Operand& b, const Result& c,
                             Into into = Into::overwrite) {
    enqueue(a, true, b, false, c, into);
  }

 private:
  struct Handle;

  void enqueue(const Operand& a, bool transpose_a, const Operand& b, bool transpose_b,
               const Result& c, Into into);

  std::unique_ptr<Handle> handle_;
};

}  // namespace cuda_gpt
