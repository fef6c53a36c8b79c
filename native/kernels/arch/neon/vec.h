// 128-bit vector traits, included by all three NEON folders. The unnamed namespace is deliberate: each file
// that includes this is compiled with its own flags and must keep its own copy (see generic/vec.h).
#pragma once

#include <arm_neon.h>

#include "kernels/generic/vec.h"
#include "quant/format.h"

namespace hotset::kernels {

namespace {

struct Vec {
  using F = float32x4_t;
  using I = int32x4_t;
  static constexpr int kLanes = 4, kStrips = 8, kAccumulators = 16, kPageVectors = 4;

  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F v) { vst1q_f32(p, v); }
  static F set(float x) { return vdupq_n_f32(x); }
  static F zero() { return vdupq_n_f32(0.0f); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F min(F a, F b) { return vminnmq_f32(a, b); }
  static F max(F a, F b) { return vmaxnmq_f32(a, b); }
  static F less(F a, F b, F yes, F no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
  static F round(F x) { return vrndnq_f32(x); }
  static F pow2(F k) {
    const I biased = vaddq_s32(vcvtnq_s32_f32(k), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
  }
  static F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static F load_i8(const int8_t* p) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
  static void store_f16(uint16_t* p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  static void store_i8(int8_t* p, F v) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(v));
    const int32_t bytes = vget_lane_s32(vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(words, words))), 0);
    __builtin_memcpy(p, &bytes, 4);
  }
  static void store_i16(int16_t* p, F v) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(v))); }
  struct Pairs {
    int16x4_t first, second;
  };
  static Pairs load_pairs(const int8_t* p) {
    const int16x8_t wide = vmovl_s8(vld1_s8(p));
    return {vget_low_s16(vuzp1q_s16(wide, wide)), vget_low_s16(vuzp2q_s16(wide, wide))};
  }
  static I dot_pairs(Pairs a, int32_t two, I sum) {
    sum = vmlal_n_s16(sum, a.first, static_cast<int16_t>(two));
    return vmlal_n_s16(sum, a.second, static_cast<int16_t>(two >> 16));
  }
  static float sum(F v) { return vaddvq_f32(v); }
  static float max_lane(F v) { return vmaxnmvq_f32(v); }
  static F to_float(I v) { return vcvtq_f32_s32(v); }
  static I set_int(int32_t x) { return vdupq_n_s32(x); }
  static I zero_int() { return vdupq_n_s32(0); }
  static I load_int(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
  static I sub_int(I a, I b) { return vsubq_s32(a, b); }
  template <int kShift>
  static I shift_left(I v) {
    return vshlq_n_s32(v, kShift);
  }
  static I as_int(F v) { return vreinterpretq_s32_f32(v); }
  struct Words {
    int16x8_t a, b;  // of two neurons: there are no products of pairs
  };
  static Words interleave(I a, I b) { return {vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)}; }
  static int16x8_t twice(I v) {
    const int16x8_t words = vreinterpretq_s16_s32(v);
    return vtrn1q_s16(words, words);
  }
  static Words pair_weights(I a, I b) { return {twice(a), twice(b)}; }
  template <int mask>
  static Words mask_words(Words w) {
    const int16x8_t m = vdupq_n_s16(mask);
    return {vandq_s16(w.a, m), vandq_s16(w.b, m)};
  }
  template <int kShift>
  static int16x8_t shift_unsigned(int16x8_t v) {
    return vreinterpretq_s16_u16(vshrq_n_u16(vreinterpretq_u16_s16(v), kShift));
  }
  template <int kShift>
  static Words shift_words(Words w) {
    return {shift_unsigned<kShift>(w.a), shift_unsigned<kShift>(w.b)};
  }
  static void multiply_add(Words x, Words y, I& low, I& high) {
    low = vmlal_s16(low, vget_low_s16(x.a), vget_low_s16(y.a));
    high = vmlal_high_s16(high, x.a, y.a);
    low = vmlal_s16(low, vget_low_s16(x.b), vget_low_s16(y.b));
    high = vmlal_high_s16(high, x.b, y.b);
  }
  static void separate(I& low, I& high) {
    const I a = low, b = high;
    low = vuzp1q_s32(a, b);
    high = vuzp2q_s32(a, b);
  }
  template <int kShift>
  static I shift_right(I v) {
    return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), kShift));
  }
  static I bits(I v, int32_t mask, int32_t set) { return bits(v, mask, set_int(set)); }
  static I bits(I v, int32_t mask, I set) { return vorrq_s32(vandq_s32(v, set_int(mask)), set); }
  static I dot_codes(const I* codes, const int8_t* a, I sum) {
#ifdef __ARM_FEATURE_DOTPROD
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      sum = vdotq_s32(sum, vreinterpretq_s8_s32(codes[j]), vld1q_s8(a + j * 64));
    }
    return sum;
#else
    int16x8_t low = vdupq_n_s16(0), high = low;  // at most 8 * 14 * 127
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const int8x16_t code = vreinterpretq_s8_s32(codes[j]), x = vld1q_s8(a + j * 64);
      low = vmlal_s8(low, vget_low_s8(code), vget_low_s8(x));
      high = vmlal_high_s8(high, code, x);
    }
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
  }
  static F as_float(I v) { return vreinterpretq_f32_s32(v); }
};

// One group of a strip of 4 rows, signed: codes minus the code that means 0.
template <quant::Format f>
struct SignedCodes {
  int8x16_t v[8];  // 4 rows of columns 4j..4j+3

  static HOTSET_INLINE SignedCodes load(const uint8_t* codes) {
    SignedCodes w;
    constexpr int stride = static_cast<int>(quant::kRowBlock) * 4;
    if constexpr (f == quant::Format::q8_0) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        w.v[j] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + j * stride), vdupq_n_u8(0x80)));
      }
    } else {
      const int8x16_t zero = vdupq_n_s8(f == quant::Format::q4_0 ? 8 : 0);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const uint8x16_t bytes = vld1q_u8(codes + j * stride);
        w.v[j] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), zero);
        w.v[j + 4] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), zero);
      }
    }
    return w;
  }
};

// sums += codes . a lane by lane; a holds four activations for each lane, vectors 64 bytes apart.
template <quant::Format f>
HOTSET_INLINE void lane_dot_wide(const SignedCodes<f>& w, const int8_t* a, int32x4_t& sums) {
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const int8x16_t x = vld1q_s8(a + j * 64);
    const int16x8_t low = vmull_s8(vget_low_s8(w.v[j]), vget_low_s8(x));
    const int16x8_t high = vmull_high_s8(w.v[j], x);
    sums = vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
}

}  // namespace

}  // namespace hotset::kernels
