// 512-bit vector traits, included by both AVX-512 folders. The unnamed namespace is deliberate: each file
// that includes this is compiled with its own flags and must keep its own copy (see generic/vec.h).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace hotset::kernels {

namespace {

struct Vec {
  using F = __m512;
  using I = __m512i;
  static constexpr int kLanes = 16, kStrips = 4, kAccumulators = 16, kPageVectors = 4;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F zero() { return _mm512_setzero_ps(); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F less(F a, F b, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
  }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F pow2(F k) {
    const I biased = _mm512_add_epi32(_mm512_cvtps_epi32(k), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bf16(const uint16_t* p) {
    const I wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store_f16(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_i8(int8_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  static void store_i16(int16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
  }
  using Pairs = __m512i;
  static Pairs load_pairs(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static I dot_pairs(Pairs a, int32_t two, I sum) {
#ifdef __AVX512VNNI__
    sum = _mm512_dpwssd_epi32(sum, a, _mm512_set1_epi32(two));
#else
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, _mm512_set1_epi32(two)));
#endif
    asm("" : "+v"(sum));
    return sum;
  }
  static float sum(F v) { return _mm512_reduce_add_ps(v); }
  static float max_lane(F v) { return _mm512_reduce_max_ps(v); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  static I set_int(int32_t x) { return _mm512_set1_epi32(x); }
  static I zero_int() { return _mm512_setzero_si512(); }
  static I load_int(const void* p) { return _mm512_loadu_si512(p); }
  static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
  template <int kShift>
  static I shift_left(I v) {
    return _mm512_slli_epi32(v, kShift);
  }
  template <int kShift>
  static I shift_right(I v) {
    return _mm512_srli_epi32(v, kShift);
  }
  static I bits(I v, int32_t mask, int32_t set) {
    return _mm512_ternarylogic_epi32(v, set_int(mask), set_int(set), 0xea);  // (v & mask) | set
  }
  static I bits(I v, int32_t mask, I set) { return _mm512_ternarylogic_epi32(v, set_int(mask), set, 0xea); }
  static I dot_codes(const I* codes, const int8_t* a, I sum) {
#ifdef __AVX512VNNI__
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sum = _mm512_dpbusd_epi32(sum, codes[j], _mm512_loadu_si512(a + j * 64));
    return sum;
#else
    I pairs = zero_int();  // at most 8 * 2 * 14 * 127
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j)
      pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(codes[j], _mm512_loadu_si512(a + j * 64)));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
  }
  static F as_float(I v) { return _mm512_castsi512_ps(v); }
  static I as_int(F v) { return _mm512_castps_si512(v); }
  struct Words {
    I low, high;  // of every four lanes the first two and the last two
  };
  static Words interleave(I a, I b) { return {_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)}; }
  static Words pair_weights(I a, I b) {
    const I two = _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16));
    return {_mm512_unpacklo_epi32(two, two), _mm512_unpackhi_epi32(two, two)};
  }
  template <int mask>
  static Words mask_words(Words w) {
    const I m = _mm512_set1_epi16(mask);
    return {_mm512_and_si512(w.low, m), _mm512_and_si512(w.high, m)};
  }
  template <int kShift>
  static Words shift_words(Words w) {
    return {_mm512_srli_epi16(w.low, kShift), _mm512_srli_epi16(w.high, kShift)};
  }
  static I add_products(I sum, I a, I b) {
#ifdef __AVX512VNNI__
    sum = _mm512_dpwssd_epi32(sum, a, b);
#else
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
    asm("" : "+v"(sum));  // GCC would turn a chain of sums into a tree
    return sum;
  }
  static void multiply_add(Words a, Words b, I& low, I& high) {
    low = add_products(low, a.low, b.low);
    high = add_products(high, a.high, b.high);
  }
  static void separate(I& low, I& high) {
    const F a = as_float(low), b = as_float(high);
    low = as_int(_mm512_shuffle_ps(a, b, 0x88));
    high = as_int(_mm512_shuffle_ps(a, b, 0xdd));
  }
};

// The four activations at a, in all lanes.
inline __m512i broadcast4(const int8_t* a) {
  int32_t bytes;
  __builtin_memcpy(&bytes, a, 4);
  return _mm512_set1_epi32(bytes);
}

}  // namespace

}  // namespace hotset::kernels
