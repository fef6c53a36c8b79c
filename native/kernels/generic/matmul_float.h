// f16, bf16 and f32 weights times f32 activations: one FMA chain per output, in column order.
#pragma once

#include "kernels/generic/vec.h"
#include "kernels/kernels.h"

namespace hotset::kernels::generic {

template <class V, quant::Format f>
struct Plain {
  static constexpr size_t kBytes = f == quant::Format::f32 ? 4 : 2;
  static HOTSET_INLINE typename V::F load(const uint8_t* p) {
    if constexpr (f == quant::Format::f32) return V::load(reinterpret_cast<const float*>(p));
    if constexpr (f == quant::Format::f16) return V::load_f16(reinterpret_cast<const uint16_t*>(p));
    if constexpr (f == quant::Format::bf16) return V::load_bf16(reinterpret_cast<const uint16_t*>(p));
  }
};

// R strips (kLanes rows each) times T tokens. w[r] and out[r] point at the strips, x at the first token.
template <class V, quant::Format f, int R, int T>
void float_strips(const uint8_t* const* w, size_t cols, const float* x, ptrdiff_t ldx, float* const* out,
                  ptrdiff_t ldo) {
  using P = Plain<V, f>;
  typename V::F acc[R][T];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[r][t] = V::zero();
  }
  for (size_t c = 0; c < cols; ++c) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename V::F weights = P::load(w[r] + c * quant::kRowBlock * P::kBytes);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t)
        acc[r][t] = V::fma(weights, V::set(x[t * ldx + static_cast<ptrdiff_t>(c)]), acc[r][t]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) V::store(out[r] + t * ldo, acc[r][t]);
  }
}

template <class V, quant::Format f, int R, int T>
HOTSET_INLINE void float_tokens(size_t n, const uint8_t* const* w, size_t cols, const float* x, ptrdiff_t ldx,
                                float* const* out, ptrdiff_t ldo) {
  if (n == T) {
    float_strips<V, f, R, T>(w, cols, x, ldx, out, ldo);
  } else if constexpr (T > 1) {
    float_tokens<V, f, R, T - 1>(n, w, cols, x, ldx, out, ldo);
  }
}

// Strips first..first+R; n tokens. A single token takes kStrips at once: one chain alone would wait for its
// FMAs.
template <class V, quant::Format f, int R>
void float_rows(const uint8_t* w, size_t first, size_t col_blocks, const float* x, ptrdiff_t ldx, size_t n,
                float* out, ptrdiff_t ldo) {
  constexpr size_t per_block = quant::kRowBlock / V::kLanes;
  const uint8_t* strips[R];
  float* outs[R];
  for (int r = 0; r < R; ++r) {
    const size_t strip = first + static_cast<size_t>(r);
    const size_t lane = strip % per_block * V::kLanes;
    strips[r] = w + strip / per_block * col_blocks * quant::col_block_bytes(f) + lane * Plain<V, f>::kBytes;
    outs[r] = out + strip * V::kLanes;
  }
  constexpr int kTokens = R == 1 ? V::kTokens : V::kTokens / R > 0 ? V::kTokens / R : 1;
  float_tokens<V, f, R, kTokens>(n, strips, col_blocks * quant::kColBlock, x, ldx, outs, ldo);
}

template <class V, quant::Format f>
void matmul_float(const uint8_t* w, size_t row_blocks, size_t col_blocks, const float* x, ptrdiff_t ldx,
                  size_t n, float* out, ptrdiff_t ldo) {
  const size_t strips = row_blocks * (quant::kRowBlock / V::kLanes);
  size_t s = 0;
  if (n * V::kStrips <= V::kTokens) {
    for (; s + V::kStrips <= strips; s += V::kStrips) {
      float_rows<V, f, V::kStrips>(w, s, col_blocks, x, ldx, n, out, ldo);
    }
  }
  for (; s < strips; ++s) {
    for (size_t t = 0; t < n; t += V::kTokens) {
      const size_t count = n - t < V::kTokens ? n - t : V::kTokens;
      const ptrdiff_t token = static_cast<ptrdiff_t>(t);
      float_rows<V, f, 1>(w, s, col_blocks, x + token * ldx, ldx, count, out + token * ldo, ldo);
    }
  }
}

}  // namespace hotset::kernels::generic
