#include "quant/neuron.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "quant/fit.h"
#include "quant/half.h"

namespace hotset::quant {
namespace {

// Where a group lies in its vector: its block, that block's lanes, and its lane.
struct Lane {
  size_t block, lanes, lane;
};

Lane lane_of(Format f, size_t group, size_t groups) {
  const size_t first = group / kLaneGroups * kLaneGroups;
  return {vector_bytes(f, first * kGroup), std::min(kLaneGroups, groups - first), group - first};
}

size_t code_at(const Lane& at, size_t j, size_t b) {
  return at.block + at.lanes * 2 + (j * at.lanes + at.lane) * 4 + b;
}

void put_code(Format f, const Lane& at, size_t col, int code, uint8_t* out) {
  if (f == Format::q8_0) {
    out[code_at(at, col / 4, col % 4)] = static_cast<uint8_t>(code + 128);
    return;
  }
  uint8_t& byte = out[code_at(at, col % 16 / 4, col % 4)];
  byte = static_cast<uint8_t>(col < 16 ? (byte & 0xf0) | (code + 8) : (byte & 0x0f) | (code + 8) << 4);
}

int get_code(Format f, const Lane& at, size_t col, const uint8_t* vector) {
  if (f == Format::q8_0) return vector[code_at(at, col / 4, col % 4)] - 128;
  const uint8_t byte = vector[code_at(at, col % 16 / 4, col % 4)];
  return (col < 16 ? byte & 15 : byte >> 4) - 8;
}

void check_format(Format f) {
  if (f != Format::q4_0 && f != Format::q8_0)
    throw InvalidArgument("neurons are stored as q4_0 or q8_0, not as " + std::string(name(f)));
}

void check_weights(const float* w, size_t cols, Format f) {
  for (size_t c = 0; c < cols; ++c)
    if (!(std::abs(w[c]) <= kMaxF16))
      throw InvalidWeight("weight " + std::to_string(w[c]) + " at column " + std::to_string(c) +
                          " cannot be stored as " + std::string(name(f)));
}

// kFitRows neighbouring groups side by side; the last one may be short, what is beyond it is 0.
void load_groups(const float* w, size_t cols, size_t group, FitInput& in) {
  in.cols = kGroup;
  for (size_t i = 0; i < kFitRows; ++i)
    for (size_t c = 0; c < kGroup; ++c) {
      const size_t col = (group + i) * kGroup + c;
      in.w[c][i] = col < cols ? w[col] : 0.0f;
    }
}

}  // namespace

ErrorSums encode_vector(Format f, const float* w, size_t cols, uint8_t* out) {
  check_format(f);
  check_weights(w, cols, f);
  const size_t groups = (cols + kGroup - 1) / kGroup;
  ErrorSums sums;
  FitInput in;
  FitResult fitted;
  for (size_t group = 0; group < groups; group += kFitRows) {
    load_groups(w, cols, group, in);
    fit(f, in, fitted);
    for (size_t i = 0; i < kFitRows && group + i < groups; ++i) {
      const Lane at = lane_of(f, group + i, groups);
      const uint16_t scale = f32_to_f16(fitted.scale[i]);
      std::memcpy(out + at.block + at.lane * 2, &scale, 2);
      for (size_t c = 0; c < kGroup; ++c) put_code(f, at, c, static_cast<int>(fitted.code[c][i]), out);
      sums.squared_error += fitted.squared_error[i];
      sums.squared_weight += fitted.squared_weight[i];
      sums.max_abs_error = std::max<double>(sums.max_abs_error, fitted.max_abs_error[i]);
    }
  }
  return sums;
}

void decode_vector(Format f, const uint8_t* vector, size_t cols, float* out) {
  check_format(f);
  const size_t groups = (cols + kGroup - 1) / kGroup;
  for (size_t c = 0; c < cols; ++c) {
    const Lane at = lane_of(f, c / kGroup, groups);
    uint16_t scale;
    std::memcpy(&scale, vector + at.block + at.lane * 2, 2);
    out[c] = f16_to_f32(scale) * static_cast<float>(get_code(f, at, c % kGroup, vector));
  }
}

}  // namespace hotset::quant
