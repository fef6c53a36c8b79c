// ARMv8.0 NEON: s8 * s8 products are added up in 16 bits for as long as they fit, then in 32.
#include "kernels/arch/neon/vec.h"
#include "kernels/generic/table.h"

namespace hotset::kernels {

namespace {

template <quant::Format f>
struct Dot {
  using V = Vec;
  static constexpr quant::Format kFormat = f;
  static constexpr int kZero = 0, kTokens = 8, kUnroll = 1;
  // Products that fit in 16 bits: 8 * 15 * 127 = 15240, 2 * 128 * 127 = 32512.
  static constexpr int kChain = f == quant::Format::q8_0 ? 2 : 8;

  using Weights = SignedCodes<f>;
  static HOTSET_INLINE Weights load(const uint8_t* codes) { return Weights::load(codes); }

  static HOTSET_INLINE int8x8_t broadcast4(const int8_t* a) {
    int32_t bytes;
    __builtin_memcpy(&bytes, a, 4);
    return vreinterpret_s8_s32(vdup_n_s32(bytes));
  }

  using LaneWeights = SignedCodes<f>;
  static HOTSET_INLINE LaneWeights lane_load(const uint8_t* codes) { return LaneWeights::load(codes); }
  template <int N>
  static HOTSET_INLINE void lane_dot(const LaneWeights* w, const int8_t* a, int32x4_t* sums) {
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) lane_dot_wide(w[i], a, sums[i]);
  }

  template <int U>
  static HOTSET_INLINE void dot(const Weights& w, const int8_t* a, int32x4_t* sums) {
    static_assert(U == 1);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j += kChain) {
      int16x8_t low = vdupq_n_s16(0), high = low;  // rows 0 and 1, rows 2 and 3; 4 columns each
#pragma GCC unroll 8
      for (int i = j; i < j + kChain; ++i) {
        const int8x8_t four = broadcast4(a + i * 4);
        low = vmlal_s8(low, vget_low_s8(w.v[i]), four);
        high = vmlal_s8(high, vget_high_s8(w.v[i]), four);
      }
      sums[0] = vaddq_s32(sums[0], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
    }
  }
};

}  // namespace

const Kernels kNeon = generic::make_table<Vec, Dot>("neon");

}  // namespace hotset::kernels
