// AVX2, FMA, F16C: vpmaddubsw adds pairs of u8 * s8 products to 16 bits. Strips of 8 rows.
#include <immintrin.h>

#include "kernels/generic/table.h"

namespace hotset::kernels {

namespace {

struct Vec {
  using F = __m256;
  using I = __m256i;
  static constexpr int kLanes = 8, kStrips = 4, kAccumulators = 8, kPageVectors = 2;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F zero() { return _mm256_setzero_ps(); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F less(F a, F b, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F pow2(F k) {
    const I biased = _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  static F load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F load_bf16(const uint16_t* p) {
    const I wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static F load_i8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static void store_f16(uint16_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_i8(int8_t* p, F v) {
    const I whole = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static void store_i16(int16_t* p, F v) {
    const I whole = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
  }
  using Pairs = __m256i;
  static Pairs load_pairs(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I dot_pairs(Pairs a, int32_t two, I sum) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, _mm256_set1_epi32(two)));
  }
  static float sum(F v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float max_lane(F v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  static I set_int(int32_t x) { return _mm256_set1_epi32(x); }
  static I zero_int() { return _mm256_setzero_si256(); }
  static I load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
  template <int kShift>
  static I shift_left(I v) {
    return _mm256_slli_epi32(v, kShift);
  }
  template <int kShift>
  static I shift_right(I v) {
    return _mm256_srli_epi32(v, kShift);
  }
  static I bits(I v, int32_t mask, int32_t set) {
    return _mm256_or_si256(_mm256_and_si256(v, set_int(mask)), set_int(set));
  }
  static I bits(I v, int32_t mask, I set) { return _mm256_or_si256(_mm256_and_si256(v, set_int(mask)), set); }
  static I dot_codes(const I* codes, const int8_t* a, I sum) {
    I pairs = zero_int();  // at most 8 * 2 * 14 * 127
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const I x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + j * 64));
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes[j], x));
    }
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static F as_float(I v) { return _mm256_castsi256_ps(v); }
  static I as_int(F v) { return _mm256_castps_si256(v); }
  struct Words {
    I low, high;  // of every four lanes the first two and the last two
  };
  static Words interleave(I a, I b) { return {_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)}; }
  static Words pair_weights(I a, I b) {
    const I two = _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
    return {_mm256_unpacklo_epi32(two, two), _mm256_unpackhi_epi32(two, two)};
  }
  template <int mask>
  static Words mask_words(Words w) {
    const I m = _mm256_set1_epi16(mask);
    return {_mm256_and_si256(w.low, m), _mm256_and_si256(w.high, m)};
  }
  template <int kShift>
  static Words shift_words(Words w) {
    return {_mm256_srli_epi16(w.low, kShift), _mm256_srli_epi16(w.high, kShift)};
  }
  static void multiply_add(Words a, Words b, I& low, I& high) {
    low = _mm256_add_epi32(low, _mm256_madd_epi16(a.low, b.low));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(a.high, b.high));
    asm("" : "+x"(low), "+x"(high));  // GCC would turn a chain of sums into a tree
  }
  static void separate(I& low, I& high) {
    const F a = as_float(low), b = as_float(high);
    low = as_int(_mm256_shuffle_ps(a, b, 0x88));
    high = as_int(_mm256_shuffle_ps(a, b, 0xdd));
  }
};

// The four activations at a, in all lanes.
inline __m256i broadcast4(const int8_t* a) {
  int32_t bytes;
  __builtin_memcpy(&bytes, a, 4);
  return _mm256_set1_epi32(bytes);
}

// Ends an addition: GCC would turn a chain of integer sums into a wide tree and spill it, which halves the
// rate.
inline void fix_order(__m256i& sum) { asm("" : "+x"(sum)); }

inline __m256i load_codes(const uint8_t* codes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
}

inline __m256i load_activations(const int8_t* a) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
}

template <quant::Format f>
struct Dot;

// Codes up to 15: a pair is at most 2 * 15 * 127 = 3810, so the 8 pairs of a group fit in 16 bits (30480).
template <quant::Format f>
  requires(f == quant::Format::q4_0 || f == quant::Format::q4_1)
struct Dot<f> {
  using V = Vec;
  static constexpr quant::Format kFormat = f;
  static constexpr int kZero = f == quant::Format::q4_0 ? 8 : 0;
  static constexpr int kTokens = 4, kUnroll = 4;

  struct Weights {
    const uint8_t* codes;  // 8 vectors would leave no register for the sums
  };

  static HOTSET_INLINE Weights load(const uint8_t* codes) { return {codes}; }

  using LaneWeights = Weights;
  static HOTSET_INLINE LaneWeights lane_load(const uint8_t* codes) { return {codes}; }
  template <int N>
  static HOTSET_INLINE void lane_dot(const LaneWeights* w, const int8_t* a, __m256i* sums) {
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) lane_dot_one(w[i], a, sums[i]);
  }
  static HOTSET_INLINE void lane_dot_one(const Weights& w, const int8_t* a, __m256i& sums) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256i bytes = load_codes(w.codes + j * 64);
      const __m256i low = _mm256_and_si256(bytes, nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(low, load_activations(a + j * 64)));
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(high, load_activations(a + (j + 4) * 64)));
    }
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  template <int U>
  static HOTSET_INLINE void dot(const Weights& w, const int8_t* a, __m256i* sums) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i pairs[U];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256i bytes = load_codes(w.codes + j * 64);
      const __m256i low = _mm256_and_si256(bytes, nibble),
                    high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const int8_t* four = a + u * static_cast<int>(quant::kGroup) + j * 4;
        const __m256i product = _mm256_maddubs_epi16(low, broadcast4(four));
        pairs[u] = j == 0 ? product : _mm256_add_epi16(pairs[u], product);
        pairs[u] = _mm256_add_epi16(pairs[u], _mm256_maddubs_epi16(high, broadcast4(four + 16)));
        fix_order(pairs[u]);
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      sums[u] = _mm256_add_epi32(sums[u], _mm256_madd_epi16(pairs[u], _mm256_set1_epi16(1)));
    }
  }
};

// Signed codes as magnitude and sign, the sign moved to the activation: a pair is at most 2 * 128 * 127 =
// 32512.
template <>
struct Dot<quant::Format::q8_0> {
  using V = Vec;
  static constexpr quant::Format kFormat = quant::Format::q8_0;
  static constexpr int kZero = 0, kTokens = 4, kUnroll = 4;

  struct Weights {
    const uint8_t* codes;  // 8 vectors would leave no register for the sums
  };

  static HOTSET_INLINE Weights load(const uint8_t* codes) { return {codes}; }

  using LaneWeights = Weights;
  static HOTSET_INLINE LaneWeights lane_load(const uint8_t* codes) { return {codes}; }
  template <int N>
  static HOTSET_INLINE void lane_dot(const LaneWeights* w, const int8_t* a, __m256i* sums) {
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) lane_dot_one(w[i], a, sums[i]);
  }
  static HOTSET_INLINE void lane_dot_one(const Weights& w, const int8_t* a, __m256i& sums) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m256i code = _mm256_xor_si256(load_codes(w.codes + j * 64), _mm256_set1_epi8(-128));
      const __m256i turned = _mm256_sign_epi8(load_activations(a + j * 64), code);
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(code), turned);
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
  }

  template <int U>
  static HOTSET_INLINE void dot(const Weights& w, const int8_t* a, __m256i* sums) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m256i code = _mm256_xor_si256(load_codes(w.codes + j * 64), _mm256_set1_epi8(-128));
      const __m256i magnitude = _mm256_abs_epi8(code);
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        const __m256i four = broadcast4(a + u * static_cast<int>(quant::kGroup) + j * 4);
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(four, code));
        sums[u] = _mm256_add_epi32(sums[u], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        fix_order(sums[u]);
      }
    }
  }
};

}  // namespace

const Kernels kAvx2 = generic::make_table<Vec, Dot>("avx2");

}  // namespace hotset::kernels
