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

// One group of a vector, in a block of `lanes` groups.
template <class Byte>
struct Place {
  Byte *scale, *codes;
  size_t lanes, lane;

  Place(unsigned bits, Byte* vector, size_t group, size_t groups) {
    const size_t first = group / kLaneGroups * kLaneGroups;
    scale = vector + 2 * group;
    codes = vector + 2 * groups + first * kGroup * bits / 8;
    lanes = std::min(kLaneGroups, groups - first);
    lane = group - first;
  }
  // The byte with bits 0-1 of the code of column c, and the one with bit 2.
  Byte& low(size_t c) const { return codes[(c / 4 % 2 * lanes + lane) * 4 + c % 4]; }
  Byte& high(size_t c) const { return codes[(2 * lanes + lane) * 4 + c % 4]; }
};

void put_code(unsigned bits, const Place<uint8_t>& at, size_t c, unsigned code) {
  at.low(c) = static_cast<uint8_t>(at.low(c) | (code & 3u) << c / 8 * 2);
  if (bits == 3) at.high(c) = static_cast<uint8_t>(at.high(c) | code >> 2 << c / 4);
}

unsigned get_code(unsigned bits, const Place<const uint8_t>& at, size_t c) {
  const unsigned low = at.low(c) >> c / 8 * 2 & 3u;
  return bits == 3 ? low | (at.high(c) >> c / 4 & 1u) << 2 : low;
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
  const size_t vector = sketch_vector_bytes(bits, cols), groups = (cols + kGroup - 1) / kGroup;
  std::memset(out, 0, rows * vector);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t g = 0; g < groups; ++g) {
      const size_t col = g * kGroup;
      const Group group{w + row * cols + col, importance + col, std::min(kGroup, cols - col), top};
      check_finite(group, row, col);
      const float scale = fit_scale(group);
      const uint16_t half = f32_to_f16(scale);
      const Place<uint8_t> at(bits, out + row * vector, g, groups);
      std::memcpy(at.scale, &half, 2);
      for (size_t c = 0; c < group.n && scale > 0; ++c)
        put_code(bits, at, c, static_cast<unsigned>(group.level(group.w[c], scale) + top) / 2);
    }
  }
}

void decode_sketch(unsigned bits, const uint8_t* sketch, size_t rows, size_t cols, float* out) {
  const int top = (1 << bits) - 1;
  const size_t vector = sketch_vector_bytes(bits, cols), groups = (cols + kGroup - 1) / kGroup;
  for (size_t row = 0; row < rows; ++row) {
    for (size_t col = 0; col < cols; ++col) {
      const Place<const uint8_t> at(bits, sketch + row * vector, col / kGroup, groups);
      uint16_t half;
      std::memcpy(&half, at.scale, 2);
      const int code = static_cast<int>(get_code(bits, at, col % kGroup));
      out[row * cols + col] = f16_to_f32(half) * static_cast<float>(2 * code - top);
    }
  }
}

}  // namespace hotset::quant
