// Packed matrices as arguments: format names, shapes within reason, sizes that agree.
#pragma once

#include <string>

#include "bind/array.h"
#include "quant/format.h"

namespace hotset::bind {

inline quant::Format format_of(const std::string& name) {
  const auto f = quant::parse_format(name);
  if (!f) throw InvalidArgument("no weight format '" + name + "'; wanted f32, f16, bf16, q8_0, q4_0 or q4_1");
  return *f;
}

// So that no product of rows, columns and bytes per weight overflows.
inline void check_shape(size_t rows, size_t cols) {
  constexpr size_t kMost = size_t{1} << 28;
  if (rows > kMost || cols > kMost)
    throw InvalidArgument("shape [" + std::to_string(rows) + ", " + std::to_string(cols) +
                          "] exceeds 2^28 rows or columns");
}

inline View<const uint8_t> packed_matrix(quant::Format f, nb::handle packed, size_t rows, size_t cols) {
  check_shape(rows, cols);
  return view<const uint8_t>(packed, "packed", {quant::packed_bytes(f, rows, cols)});
}

}  // namespace hotset::bind
