#include "quant/sketch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "quant/half.h"

namespace hotset::quant {
namespace {

constexpr int kScales = 12, kRefinements = 3;

size_t code_at(size_t g, size_t r, size_t c) { return ((g * 8 + c / 4) * kRowBlock + r) * 4 + c % 4; }

void put_code(unsigned bits, uint8_t* block, size_t at, unsigned code) {
  uint8_t& low = block[kSketchScales + at % kSketchLow];
  low = static_cast<uint8_t>(low | (code & 3u) << 2 * (at / kSketchLow));
  if (bits < 3) return;
  uint8_t& high = block[kSketchScales + kSketchLow + at % kSketchHigh];
  high = static_cast<uint8_t>(high | code >> 2 << at / kSketchHigh);
}

unsigned get_code(unsigned bits, const uint8_t* block, size_t at) {
  unsigned code = block[kSketchScales + at % kSketchLow] >> 2 * (at / kSketchLow) & 3u;
  if (bits == 3) code |= (block[kSketchScales + kSketchLow + at % kSketchHigh] >> at / kSketchHigh & 1u) << 2;
  return code;
}

// One group: its weights, what each column counts, and levels 1, 3, .. top on either side of 0.
struct Group {
  const float *w, *importance;
  size_t n;
  int top;

  int level(float w, float scale) const {
    const int k = 2 * static_cast<int>(std::floor(w / (2 * scale))) + 1;
    return std::clamp(k, -top, top);
  }
  double error(float scale) const {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
      const double e = w[i] - static_cast<double>(scale) * level(w[i], scale);
      sum += importance[i] * e * e;
    }
    return sum;
  }
  // The best scale for the levels that `scale` gives.
  float refined(float scale) const {
    double wl = 0, ll = 0;
    for (size_t i = 0; i < n; ++i) {
      const double l = level(w[i], scale);
      wl += importance[i] * w[i] * l;
      ll += importance[i] * l * l;
    }
    return static_cast<float>(wl / ll);
  }
};

float fit_scale(const Group& group) {
  float largest = 0;
  for (size_t i = 0; i < group.n; ++i) largest = std::max(largest, std::fabs(group.w[i]));
  if (largest == 0) return 0;
  float best = 0;
  double least = INFINITY;
  for (int i = 0; i < kScales; ++i) {
    float scale =
        largest / static_cast<float>(group.top) * (0.3f + 0.8f * static_cast<float>(i) / (kScales - 1));
    for (int j = 0; j < kRefinements; ++j) {
      const float next = group.refined(scale);
      if (!(next > 0)) break;
      scale = next;
    }
    scale = f16_to_f32(f32_to_f16(scale));
    if (!(scale > 0)) continue;
    if (const double error = group.error(scale); error < least) least = error, best = scale;
  }
  return best;
}

void check_finite(const Group& group, size_t row, size_t col) {
  for (size_t i = 0; i < group.n; ++i)
    if (!(std::fabs(group.w[i]) <= kMaxF16))
      throw InvalidWeight("weight " + std::to_string(group.w[i]) + " at row " + std::to_string(row) +
                          ", column " + std::to_string(col + i) + " cannot be sketched");
}

}  // namespace

void encode_sketch(unsigned bits, const float* w, size_t rows, size_t cols, const float* importance,
                   uint8_t* out) {
  const int top = (1 << bits) - 1;
  std::memset(out, 0, sketch_bytes(bits, rows, cols));
  for (size_t row = 0; row < rows; ++row) {
    uint8_t* row_block = out + row / kRowBlock * sketch_row_block_bytes(bits, cols);
    for (size_t col = 0; col < cols; col += kGroup) {
      uint8_t* block = row_block + col / kColBlock * sketch_block_bytes(bits);
      const size_t g = col % kColBlock / kGroup, r = row % kRowBlock;
      const Group group{w + row * cols + col, importance + col, std::min(kGroup, cols - col), top};
      check_finite(group, row, col);
      const float scale = fit_scale(group);
      const uint16_t half = f32_to_f16(scale);
      std::memcpy(block + (g * kRowBlock + r) * 2, &half, 2);
      for (size_t c = 0; c < group.n && scale > 0; ++c)
        put_code(bits, block, code_at(g, r, c),
                 static_cast<unsigned>(group.level(group.w[c], scale) + top) / 2);
    }
  }
}

void decode_sketch(unsigned bits, const uint8_t* sketch, size_t rows, size_t cols, float* out) {
  const int top = (1 << bits) - 1;
  for (size_t row = 0; row < rows; ++row) {
    const uint8_t* row_block = sketch + row / kRowBlock * sketch_row_block_bytes(bits, cols);
    for (size_t col = 0; col < cols; ++col) {
      const uint8_t* block = row_block + col / kColBlock * sketch_block_bytes(bits);
      const size_t g = col % kColBlock / kGroup, r = row % kRowBlock;
      uint16_t half;
      std::memcpy(&half, block + (g * kRowBlock + r) * 2, 2);
      const int code = static_cast<int>(get_code(bits, block, code_at(g, r, col % kGroup)));
      out[row * cols + col] = f16_to_f32(half) * static_cast<float>(2 * code - top);
    }
  }
}

}  // namespace hotset::quant
