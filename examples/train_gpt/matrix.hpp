#pragma once

#include <cstddef>

namespace train_gpt {

/// A row-major matrix somewhere else; consecutive rows are `stride` elements apart.
template <class T>
struct Matrix {
  T* data = nullptr;
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t stride = 0;

  Matrix(T* first, std::size_t row_count, std::size_t column_count)
      : Matrix(first, row_count, column_count, column_count) {}
  Matrix(T* first, std::size_t row_count, std::size_t column_count, std::size_t row_stride)
      : data(first), rows(row_count), columns(column_count), stride(row_stride) {}
};

/// c = a b. The operands do not overlap the result, in all three products.
void multiply(Matrix<const float> a, Matrix<const float> b, Matrix<float> c);

/// c = a bᵀ
void multiply_by_transpose(Matrix<const float> a, Matrix<const float> b, Matrix<float> c);

/// c = aᵀ b
void multiply_transpose_by(Matrix<const float> a, Matrix<const float> b, Matrix<float> c);

}  // namespace train_gpt
