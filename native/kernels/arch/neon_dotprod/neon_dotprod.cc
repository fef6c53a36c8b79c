// ARMv8.2 dot product: sdot adds four s8 * s8 products per lane, the activations taken from one lane for all
// rows.
#include "kernels/arch/neon/vec.h"
#include "kernels/generic/table.h"

namespace hotset::kernels {

namespace {

template <quant::Format f>
struct Dot {
  using V = Vec;
  static constexpr quant::Format kFormat = f;
  static constexpr int kZero = 0, kTokens = 16, kUnroll = 2;

  using Weights = SignedCodes<f>;
  static HOTSET_INLINE Weights load(const uint8_t* codes) { return Weights::load(codes); }

  using LaneWeights = SignedCodes<f>;
  static HOTSET_INLINE LaneWeights lane_load(const uint8_t* codes) { return LaneWeights::load(codes); }
  template <int N>
  static HOTSET_INLINE void lane_dot(const LaneWeights* w, const int8_t* a, int32x4_t* sums) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const int8x16_t x = vld1q_s8(a + j * 64);
#pragma GCC unroll 2
      for (int i = 0; i < N; ++i) sums[i] = vdotq_s32(sums[i], w[i].v[j], x);
    }
  }

  template <int U>
  static HOTSET_INLINE void dot(const Weights& w, const int8_t* a, int32x4_t* sums) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) {
      const int8_t* token = a + u * static_cast<int>(quant::kGroup);
      const int8x16_t first = vld1q_s8(token), second = vld1q_s8(token + 16);
      int32x4_t sum = sums[u];
      sum = vdotq_laneq_s32(sum, w.v[0], first, 0);
      sum = vdotq_laneq_s32(sum, w.v[1], first, 1);
      sum = vdotq_laneq_s32(sum, w.v[2], first, 2);
      sum = vdotq_laneq_s32(sum, w.v[3], first, 3);
      sum = vdotq_laneq_s32(sum, w.v[4], second, 0);
      sum = vdotq_laneq_s32(sum, w.v[5], second, 1);
      sum = vdotq_laneq_s32(sum, w.v[6], second, 2);
      sums[u] = vdotq_laneq_s32(sum, w.v[7], second, 3);
    }
  }
};

}  // namespace

const Kernels kNeonDotprod = generic::make_table<Vec, Dot>("neon_dotprod");

}  // namespace hotset::kernels
