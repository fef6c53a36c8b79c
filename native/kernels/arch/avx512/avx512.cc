// AVX-512 without VNNI: vpmaddubsw adds pairs of u8 * s8 products to 16 bits.
#include "kernels/arch/avx512/vec.h"
#include "kernels/generic/table.h"

namespace hotset::kernels {

namespace {

// Ends an addition: GCC would turn a chain of integer sums into a wide tree and spill it.
inline void fix_order(__m512i& sum) { asm("" : "+v"(sum)); }

template <quant::Format f>
struct Dot;

// Codes up to 15: a pair is at most 2 * 15 * 127 = 3810, so the 8 pairs of a group fit in 16 bits (30480).
template <quant::Format f>
  requires(f == quant::Format::q4_0 || f == quant::Format::q4_1)
struct Dot<f> {
  using V = Vec;
  static constexpr quant::Format kFormat = f;
  static constexpr int kZero = f == quant::Format::q4_0 ? 8 : 0;
  static constexpr int kTokens = 16, kUnroll = 4;

  struct Weights {
    __m512i v[8];
  };

  static HOTSET_INLINE Weights load(const uint8_t* codes) {
    const __m512i nibble = _mm512_set1_epi8(15);
    Weights w;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i bytes = _mm512_loadu_si512(codes + j * 64);
      w.v[j] = _mm512_and_si512(bytes, nibble);
      w.v[j + 4] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
    }
    return w;
  }

  using LaneWeights = Weights;
  static HOTSET_INLINE LaneWeights lane_load(const uint8_t* codes) { return load(codes); }
  template <int N>
  static HOTSET_INLINE void lane_dot(const LaneWeights* w, const int8_t* a, __m512i* sums) {
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) lane_dot_one(w[i], a, sums[i]);
  }
  static HOTSET_INLINE void lane_dot_one(const Weights& w, const int8_t* a, __m512i& sums) {
    __m512i pairs = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j)
      pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(w.v[j], _mm512_loadu_si512(a + j * 64)));
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }

  template <int U>
  static HOTSET_INLINE void dot(const Weights& w, const int8_t* a, __m512i* sums) {
    __m512i pairs[U];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        const __m512i four = broadcast4(a + u * static_cast<int>(quant::kGroup) + j * 4);
        const __m512i product = _mm512_maddubs_epi16(w.v[j], four);
        pairs[u] = j == 0 ? product : _mm512_add_epi16(pairs[u], product);
        fix_order(pairs[u]);
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      sums[u] = _mm512_add_epi32(sums[u], _mm512_madd_epi16(pairs[u], _mm512_set1_epi16(1)));
    }
  }
};

// Signed codes as magnitude and sign, the sign moved to the activation: a pair is at most 2 * 128 * 127 =
// 32512.
template <>
struct Dot<quant::Format::q8_0> {
  using V = Vec;
  static constexpr quant::Format kFormat = quant::Format::q8_0;
  static constexpr int kZero = 0, kTokens = 8, kUnroll = 2;

  struct Weights {
    __m512i v[8];  // signed
  };

  static HOTSET_INLINE Weights load(const uint8_t* codes) {
    Weights w;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      w.v[j] = _mm512_xor_si512(_mm512_loadu_si512(codes + j * 64), _mm512_set1_epi8(-128));
    }
    return w;
  }

  using LaneWeights = Weights;
  static HOTSET_INLINE LaneWeights lane_load(const uint8_t* codes) { return load(codes); }
  template <int N>
  static HOTSET_INLINE void lane_dot(const LaneWeights* w, const int8_t* a, __m512i* sums) {
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) lane_dot_one(w[i], a, sums[i]);
  }
  static HOTSET_INLINE void lane_dot_one(const Weights& w, const int8_t* a, __m512i& sums) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m512i x = _mm512_loadu_si512(a + j * 64);
      const __m512i turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w.v[j]), _mm512_setzero_si512(), x);
      const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w.v[j]), turned);
      sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
  }

  template <int U>
  static HOTSET_INLINE void dot(const Weights& w, const int8_t* a, __m512i* sums) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __mmask64 negative = _mm512_movepi8_mask(w.v[j]);
      const __m512i magnitude = _mm512_abs_epi8(w.v[j]);
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        const __m512i four = broadcast4(a + u * static_cast<int>(quant::kGroup) + j * 4);
        const __m512i turned = _mm512_mask_sub_epi8(four, negative, _mm512_setzero_si512(), four);
        const __m512i pairs = _mm512_maddubs_epi16(magnitude, turned);
        sums[u] = _mm512_add_epi32(sums[u], _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
        fix_order(sums[u]);
      }
    }
  }
};

}  // namespace

const Kernels kAvx512 = generic::make_table<Vec, Dot>("avx512");

}  // namespace hotset::kernels
