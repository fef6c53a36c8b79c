// Finds scale (and offset) of groups of up to 32 weights: least squared error with the f16 values as stored.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/format.h"

namespace hotset::quant {

inline constexpr size_t kFitRows = 4;  // groups fitted side by side: f32 lanes of SSE2 and NEON

// One group of kFitRows neighbouring rows, column-major; only the first `cols` columns count.
struct FitInput {
  alignas(16) float w[kGroup][kFitRows];
  size_t cols;  // 1..kGroup
};

struct FitResult {
  alignas(16) float scale[kFitRows], offset[kFitRows];  // exact in f16
  alignas(16) float code[kGroup][kFitRows];             // q8_0: -128..127, q4_0: -8..7, q4_1: 0..15
  // Of decoded = scale * code + offset, summed over the group in f32 (32 terms).
  alignas(16) float squared_error[kFitRows], squared_weight[kFitRows], max_abs_error[kFitRows];
};

// f is q8_0, q4_0 or q4_1; weights finite, at most 65504 in magnitude.
void fit(Format f, const FitInput& in, FitResult& out);

}  // namespace hotset::quant
