#include <array>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/core/tensor_view.hpp>
#include <type_traits>

using namespace shardwise;

TEST_CASE("a tensor view is a span with a shape") {
  std::array<float, 6> elements{0, 1, 2, 3, 4, 5};
  const std::array<std::size_t, 2> shape{2, 3};
  const TensorView<float> view(elements, shape);
  CHECK(view.data() == elements.data());
  CHECK(view.size() == 6);
  CHECK(view.shape().size() == 2);
  CHECK(view.shape()[1] == 3);
  view[4] = 40;
  CHECK(elements[4] == 40);

  const TensorView<const float> reader = view;
  CHECK(reader.data() == elements.data());
  CHECK(reader.shape().data() == shape.data());
  STATIC_REQUIRE_FALSE(std::is_convertible_v<TensorView<const float>, TensorView<float>>);

  const TensorView<float> nothing;
  CHECK(nothing.empty());
  CHECK(nothing.shape().empty());
}
