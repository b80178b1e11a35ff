#include "matrix.hpp"

// One rank is one thread: Eigen must not start its own.
#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>

namespace train_gpt {
namespace {

using Storage = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Stride = Eigen::OuterStride<>;
// Unaligned maps: the bits of a product must not depend on where a buffer happens to lie.
using Input = Eigen::Map<const Storage, Eigen::Unaligned, Stride>;
using Output = Eigen::Map<Storage, Eigen::Unaligned, Stride>;

Eigen::Index index(std::size_t value) { return static_cast<Eigen::Index>(value); }

Input input(const Matrix<const float>& m) {
  return Input(m.data, index(m.rows), index(m.columns), Stride(index(m.stride)));
}

Output output(const Matrix<float>& m) {
  return Output(m.data, index(m.rows), index(m.columns), Stride(index(m.stride)));
}

}  // namespace

void multiply(Matrix<const float> a, Matrix<const float> b, Matrix<float> c) {
  output(c).noalias() = input(a) * input(b);
}

void multiply_by_transpose(Matrix<const float> a, Matrix<const float> b, Matrix<float> c) {
  output(c).noalias() = input(a) * input(b).transpose();
}

void multiply_transpose_by(Matrix<const float> a, Matrix<const float> b, Matrix<float> c) {
  output(c).noalias() = input(a).transpose() * input(b);
}

}  // namespace train_gpt
