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
  constexpr size_t prefetch_ahead = 1024;  // bytes
  typename V::F acc[R][T];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[r][t] = V::zero();
  }
  for (size_t c = 0; c < cols; ++c) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(w[r] + c * quant::kRowBlock * P::kBytes + prefetch_ahead);
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

// Exactly n = T tokens.
template <class V, quant::Format f, int R, int T>
HOTSET_INLINE void float_tokens(size_t n, const uint8_t* const* w, size_t cols, const float* x, ptrdiff_t ldx,
                                float* const* out, ptrdiff_t ldo) {
  if (n == T) {
    float_strips<V, f, R, T>(w, cols, x, ldx, out, ldo);
  } else if constexpr (T > 1) {
    float_tokens<V, f, R, T - 1>(n, w, cols, x, ldx, out, ldo);
  }
}

template <class V>
inline constexpr size_t kMaxTokens =
    V::kAccumulators / 2;  // of one pass: with two strips, weights are used well

// Strips `first` and the next R - 1, all tokens, `chunk` of them a pass.
template <class V, quant::Format f, int R>
void float_rows(const uint8_t* w, size_t first, size_t col_blocks, const float* x, ptrdiff_t ldx, size_t n,
                size_t chunk, float* out, ptrdiff_t ldo) {
  constexpr size_t per_block = quant::kRowBlock / V::kLanes;
  const uint8_t* strips[R];
  float* outs[R];
  for (int r = 0; r < R; ++r) {
    const size_t strip = first + static_cast<size_t>(r);
    const size_t lane = strip % per_block * V::kLanes;
    strips[r] = w + strip / per_block * col_blocks * quant::col_block_bytes(f) + lane * Plain<V, f>::kBytes;
    outs[r] = out + strip * V::kLanes;
  }
  constexpr int tokens = static_cast<int>(R == 1 ? kMaxTokens<V> : V::kAccumulators / R);
  for (size_t t = 0; t < n; t += chunk) {
    const size_t count = n - t < chunk ? n - t : chunk;
    float_tokens<V, f, R, tokens>(count, strips, col_blocks * quant::kColBlock,
                                  x + static_cast<ptrdiff_t>(t) * ldx, ldx, outs, ldo);
    for (int r = 0; r < R; ++r) outs[r] += static_cast<ptrdiff_t>(chunk) * ldo;
  }
}

// As many strips at once as the accumulators allow: few tokens alone would wait for the latency of their
// FMAs.
template <class V, quant::Format f, int R>
void float_matrix(const uint8_t* w, size_t strips, size_t first, size_t col_blocks, const float* x,
                  ptrdiff_t ldx, size_t n, size_t chunk, float* out, ptrdiff_t ldo) {
  if (R == 1 || R * chunk <= V::kAccumulators) {
    for (; first + R <= strips; first += R)
      float_rows<V, f, R>(w, first, col_blocks, x, ldx, n, chunk, out, ldo);
  }
  if constexpr (R > 1) float_matrix<V, f, R / 2>(w, strips, first, col_blocks, x, ldx, n, chunk, out, ldo);
}

template <class V, quant::Format f>
void matmul_float(const uint8_t* w, size_t row_blocks, size_t col_blocks, const float* x, ptrdiff_t ldx,
                  size_t n, float* out, ptrdiff_t ldo) {
  const size_t strips = row_blocks * (quant::kRowBlock / V::kLanes);
  const size_t passes = (n + kMaxTokens<V> - 1) / kMaxTokens<V>;
  if (passes == 0) return;
  const size_t chunk = (n + passes - 1) / passes;  // 9 tokens are 5 and 4, not 8 and 1
  float_matrix<V, f, V::kStrips>(w, strips, 0, col_blocks, x, ldx, n, chunk, out, ldo);
}

}  // namespace hotset::kernels::generic
