// Inputs of a matrix product for all rows of a batch, in the form that the weight's format wants.
#pragma once

#include <cstdint>

#include "base/memory.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "model/weights.h"

namespace hotset::model {

constexpr size_t pad_to(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Floats [rows][ld], ld a multiple of 64 with zeros behind `cols`.
struct Rows {
  float* data = nullptr;
  size_t ld = 0;
  float* row(size_t t) const { return data + t * ld; }
};

// Int8 copy of Rows in tiles of 16 tokens, all groups of a tile together (kernels::QTile).
class QuantizedRows {
 public:
  QuantizedRows() = default;
  QuantizedRows(size_t max_rows, size_t max_cols);
  void shape(size_t rows, size_t cols) {
    rows_ = rows, groups_ = pad_to(cols, quant::kColBlock) / quant::kGroup;
  }
  size_t tiles() const { return pad_to(rows_, kernels::kTile) / kernels::kTile; }
  kernels::QTile tile(size_t i) const {
    const size_t first = i * kernels::kTile;
    const size_t n = rows_ - first < kernels::kTile ? rows_ - first : kernels::kTile;
    return {q_ + first * groups_ * quant::kGroup, d_ + first * groups_, s_ + first * groups_, n};
  }
  size_t bytes() const { return memory_.size(); }

 private:
  Buffer memory_;
  int8_t* q_ = nullptr;
  float* d_ = nullptr;
  int32_t* s_ = nullptr;
  size_t rows_ = 0, groups_ = 0;
};

// The part of `tile` that starts at `group`.
inline kernels::QTile from_group(const kernels::QTile& tile, size_t group) {
  return {tile.q + group * tile.n * quant::kGroup, tile.d + group * tile.n, tile.s + group * tile.n, tile.n};
}

}  // namespace hotset::model
