// The twin of all other ISAs in plain C++: runs anywhere, and is what they are compared with.
#include <bit>
#include <cmath>

#include "kernels/generic/table.h"
#include "quant/half.h"

namespace hotset::kernels {

namespace {

struct Vec {
  using F = float;
  using I = int32_t;
  static constexpr int kLanes = 1, kStrips = 4, kAccumulators = 4, kPageVectors = 4;

  static F load(const float* p) { return *p; }
  static void store(float* p, F v) { *p = v; }
  static F set(float x) { return x; }
  static F zero() { return 0.0f; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) {
    return a * b + c;
  }  // a call of fmaf() where the baseline has no such instruction
  static F min(F a, F b) { return a < b ? a : b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F less(F a, F b, F yes, F no) { return a < b ? yes : no; }
  static F round(F x) { return (x + 12582912.0f) - 12582912.0f; }  // |x| < 2^22; ties to even
  static F pow2(F k) { return std::ldexp(1.0f, static_cast<int>(k)); }
  static F load_f16(const uint16_t* p) { return quant::f16_to_f32(*p); }
  static F load_bf16(const uint16_t* p) { return quant::bf16_to_f32(*p); }
  static F load_i8(const int8_t* p) { return static_cast<float>(*p); }
  static void store_f16(uint16_t* p, F v) { *p = quant::f32_to_f16(v); }
  static void store_i8(int8_t* p, F v) { *p = static_cast<int8_t>(round(v)); }
  static void store_i16(int16_t* p, F v) { *p = static_cast<int16_t>(round(v)); }
  struct Pairs {
    int32_t first, second;
  };
  static Pairs load_pairs(const int8_t* p) { return {p[0], p[1]}; }
  static I dot_pairs(Pairs a, int32_t two, I sum) {  // the first of two is the low half: little endian
    return sum + a.first * static_cast<int16_t>(two) + a.second * static_cast<int16_t>(two >> 16);
  }
  static float sum(F v) { return v; }
  static float max_lane(F v) { return v; }
  static F to_float(I v) { return static_cast<float>(v); }
  static I set_int(int32_t x) { return x; }
  static I zero_int() { return 0; }
  static I load_int(const void* p) {
    I v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static I sub_int(I a, I b) { return static_cast<I>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b)); }
  template <int kShift>
  static I shift_left(I v) {
    return v << kShift;
  }
  static I as_int(F v) { return std::bit_cast<int32_t>(v); }
  struct Words {
    uint32_t a, b;  // two int16 each
  };
  static Words interleave(I a, I b) { return {static_cast<uint32_t>(a), static_cast<uint32_t>(b)}; }
  static Words pair_weights(I a, I b) { return interleave(a, b); }
  template <int mask>
  static Words mask_words(Words w) {
    constexpr uint32_t m = mask << 16 | mask;
    return {w.a & m, w.b & m};
  }
  template <int kShift>
  static Words shift_words(Words w) {
    constexpr uint32_t m = 0xffff >> kShift << 16 | 0xffff >> kShift;
    return {w.a >> kShift & m, w.b >> kShift & m};
  }
  // Wraps where a weight was infinite, as vectors do.
  static void add_product(I& sum, uint32_t code, uint32_t weight) {
    sum = static_cast<I>(static_cast<uint32_t>(sum) +
                         (code & 0xffff) * static_cast<uint32_t>(static_cast<int16_t>(weight)));
  }
  static void multiply_add(Words x, Words w, I& low, I& high) {
    add_product(low, x.a, w.a);
    add_product(low, x.b, w.b);
    add_product(high, x.a >> 16, w.a);
    add_product(high, x.b >> 16, w.b);
  }
  static void separate(I&, I&) {}
  template <int kShift>
  static I shift_right(I v) {
    return static_cast<I>(static_cast<uint32_t>(v) >> kShift);
  }
  static I bits(I v, int32_t mask, int32_t set) { return (v & mask) | set; }
  static I dot_codes(const I* codes, const int8_t* a, I sum) {
    for (int j = 0; j < 8; ++j)
      for (int b = 0; b < 4; ++b) sum += (codes[j] >> 8 * b & 15) * a[j * 64 + b];
    return sum;
  }
  static F as_float(I v) { return std::bit_cast<float>(v); }
};

template <quant::Format f>
struct Dot {
  using V = Vec;
  static constexpr quant::Format kFormat = f;
  static constexpr int kZero = f == quant::Format::q8_0 ? 128 : f == quant::Format::q4_0 ? 8 : 0;
  static constexpr int kTokens = 4, kUnroll = 1;

  struct Weights {
    int code[quant::kGroup];
  };

  static Weights load(const uint8_t* codes) {
    Weights w;
    constexpr size_t vectors = f == quant::Format::q8_0 ? 8 : 4;
    for (size_t j = 0; j < vectors; ++j) {
      for (size_t b = 0; b < 4; ++b) {
        const uint8_t byte = codes[j * quant::kRowBlock * 4 + b];
        w.code[j * 4 + b] = f == quant::Format::q8_0 ? byte : byte & 15;
        if (f != quant::Format::q8_0) w.code[16 + j * 4 + b] = byte >> 4;
      }
    }
    return w;
  }

  using LaneWeights = Weights;
  static Weights lane_load(const uint8_t* codes) { return load(codes); }
  template <int N>
  static void lane_dot(const Weights* w, const int8_t* a, int32_t* sums) {
    for (int n = 0; n < N; ++n)
      for (size_t i = 0; i < quant::kGroup; ++i)
        sums[n] += w[n].code[i] * a[i / 4 * quant::kLaneGroups * 4 + i % 4];
  }

  template <int U>
  static void dot(const Weights& w, const int8_t* a, int32_t* sums) {
    for (int u = 0; u < U; ++u) {
      for (size_t i = 0; i < quant::kGroup; ++i)
        sums[u] += w.code[i] * a[static_cast<size_t>(u) * quant::kGroup + i];
    }
  }
};

}  // namespace

const Kernels kScalar = generic::make_table<Vec, Dot>("scalar");

}  // namespace hotset::kernels
