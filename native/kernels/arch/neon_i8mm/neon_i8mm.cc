// ARMv8.6 int8 matrix multiply: smmla multiplies 2 rows by 2 tokens over 8 columns.
#include "kernels/arch/neon/vec.h"
#include "kernels/generic/table.h"

namespace hotset::kernels {

namespace {

template <quant::Format f>
struct Dot {
  using V = Vec;
  static constexpr quant::Format kFormat = f;
  static constexpr int kZero = 0, kTokens = 16, kUnroll = 4;

  struct Weights {
    int8x16_t rows01[4], rows23[4];  // columns 8k..8k+7 of two rows
  };

  static HOTSET_INLINE int8x16_t zip_low(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
  }
  static HOTSET_INLINE int8x16_t zip_high(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
  }

  static HOTSET_INLINE Weights load(const uint8_t* codes) {
    const auto plain = SignedCodes<f>::load(codes);
    Weights w;
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      w.rows01[k] = zip_low(plain.v[2 * k], plain.v[2 * k + 1]);
      w.rows23[k] = zip_high(plain.v[2 * k], plain.v[2 * k + 1]);
    }
    return w;
  }

  // Tokens u and v; v may be u, for the odd one at the end.
  static HOTSET_INLINE void dot_pair(const Weights& w, const int8_t* u, const int8_t* v, int32x4_t* sum_u,
                                     int32x4_t* sum_v) {
    int32x4_t rows01 = vdupq_n_s32(0), rows23 = rows01;  // [row a: u, v; row b: u, v]
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const int8x16_t tokens = vcombine_s8(vld1_s8(u + 8 * k), vld1_s8(v + 8 * k));
      rows01 = vmmlaq_s32(rows01, w.rows01[k], tokens);
      rows23 = vmmlaq_s32(rows23, w.rows23[k], tokens);
    }
    *sum_u = vaddq_s32(*sum_u, vuzp1q_s32(rows01, rows23));
    if (sum_v != sum_u) *sum_v = vaddq_s32(*sum_v, vuzp2q_s32(rows01, rows23));
  }

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
    constexpr int group = static_cast<int>(quant::kGroup);
#pragma GCC unroll 4
    for (int u = 0; u < U; u += 2) {
      const int v = u + 1 < U ? u + 1 : u;
      dot_pair(w, a + u * group, a + v * group, sums + u, sums + v);
    }
  }
};

}  // namespace

const Kernels kNeonI8mm = generic::make_table<Vec, Dot>("neon_i8mm");

}  // namespace hotset::kernels
