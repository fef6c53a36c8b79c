// AVX-512 with VNNI: vpdpbusd adds four u8 * s8 products per lane, 64 a cycle on one port.
#include "kernels/arch/avx512/vec.h"
#include "kernels/generic/table.h"

namespace hotset::kernels {

namespace {

template <quant::Format f>
struct Dot {
  using V = Vec;
  static constexpr quant::Format kFormat = f;
  static constexpr bool kBytes = f == quant::Format::q8_0;
  static constexpr int kZero = kBytes ? 128 : f == quant::Format::q4_0 ? 8 : 0;
  // 16 f32 accumulators, 8 vectors of codes, 4 integer sums and what feeds them: 32 registers.
  static constexpr int kTokens = 16, kUnroll = 4;

  struct Weights {
    __m512i v[8];  // unsigned codes of columns 4j..4j+3
  };

  static HOTSET_INLINE Weights load(const uint8_t* codes) {
    Weights w;
#pragma GCC unroll 8
    for (int j = 0; j < (kBytes ? 8 : 4); ++j) {
      const __m512i bytes = _mm512_loadu_si512(codes + j * 64);
      if constexpr (kBytes) {
        w.v[j] = bytes;
      } else {
        const __m512i nibble = _mm512_set1_epi8(15);
        w.v[j] = _mm512_and_si512(bytes, nibble);
        w.v[j + 4] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
      }
    }
    return w;
  }

  using LaneWeights = Weights;
  static HOTSET_INLINE LaneWeights lane_load(const uint8_t* codes) { return load(codes); }
  template <int N>
  static HOTSET_INLINE void lane_dot(const LaneWeights* w, const int8_t* a, __m512i* sums) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      __m512i x = _mm512_loadu_si512(a + j * 64);
      asm("" : "+v"(x));  // GCC would load it again for each weight, and loads are what bounds this
#pragma GCC unroll 2
      for (int i = 0; i < N; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], w[i].v[j], x);
    }
  }

  template <int U>
  static HOTSET_INLINE void dot(const Weights& w, const int8_t* a, __m512i* sums) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        const int8_t* four = a + u * static_cast<int>(quant::kGroup) + j * 4;
        sums[u] = _mm512_dpbusd_epi32(sums[u], w.v[j], broadcast4(four));
      }
    }
  }
};

}  // namespace

const Kernels kAvx512Vnni = generic::make_table<Vec, Dot>("avx512vnni");

}  // namespace hotset::kernels
