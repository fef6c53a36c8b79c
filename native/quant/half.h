// f16 and bf16 bits to and from f32, round to nearest even. Baseline code: ISA folders use their own
// instructions.
#pragma once

#include <bit>
#include <cstdint>

namespace hotset::quant {

inline constexpr float kMaxF16 = 65504.0f;

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest < 0x0400u) {  // zero and subnormals: a multiple of 2^-24
    return std::bit_cast<float>(std::bit_cast<uint32_t>(static_cast<float>(rest) * 0x1p-24f) | sign);
  }
  const uint32_t bias = rest >= 0x7c00u ? 0x70000000u : 0x38000000u;  // infinity and NaN : normal numbers
  return std::bit_cast<float>(sign | ((rest << 13) + bias));
}

inline uint16_t f32_to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), abs = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (abs > 0x7f800000u) return sign | 0x7e00u;
  if (abs >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
  if (abs < 0x38800000u) {  // below 2^-14: adding 0.5 leaves a multiple of 2^-24 in the low bits
    const float shifted = std::bit_cast<float>(abs) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t even = (abs >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((abs - 0x38000000u + 0x0fffu + even) >> 13));
}

inline float bf16_to_f32(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }

inline uint16_t f32_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace hotset::quant
