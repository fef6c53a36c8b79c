// Packed integer weights times a tile of int8 activations: the frame around each ISA's dot product of one
// group.
//
// A strip is kLanes rows of a row block: the rows that one vector holds. Accumulators of a strip and up to
// kTokens tokens stay in registers while the columns stream by; weights of a group are expanded once for all
// these tokens.
//
// D, the traits of one format on one ISA, must have
//   V, kFormat; kZero: the code that stands for 0 where load() leaves codes unsigned, else 0
//   kTokens: tokens of one pass; kUnroll: tokens of one dot(), independent chains that hide its latency
//   Weights load(codes)             codes of one strip and group; code vectors are 16 * 4 bytes apart
//   dot<U>(weights, a, sums)        sums[u] += codes . a[u * 32 .. + 32), int32 lanes
#pragma once

#include "kernels/generic/prefetch.h"
#include "kernels/generic/vec.h"
#include "kernels/kernels.h"

namespace hotset::kernels::generic {

// Tokens t0..t0+T of all groups seen by one pass.
template <class D>
struct TokenSpan {
  const int8_t* q;
  const float* d;
  const int32_t* s;
  size_t stride;  // tokens of the whole tile

  HOTSET_INLINE void next_group() {
    q += stride * quant::kGroup;
    d += stride;
    s += stride;
  }
};

template <class D>
struct GroupBytes {
  static constexpr size_t kCodes =
      quant::kRowBlock * quant::kGroup / (D::kFormat == quant::Format::q8_0 ? 1 : 2);
  static constexpr size_t kBlock = quant::col_block_bytes(D::kFormat);
  static constexpr size_t kCodesStart = kBlock - 2 * kCodes;
};

// One group of one strip for T tokens, kUnroll at a time: acc[t] += scale * d[t] * (codes . q[t] - zero *
// s[t]).
template <class D, int T, int From = 0>
HOTSET_INLINE void group_tokens(const typename D::Weights& weights, typename D::V::F scale,
                                typename D::V::F offset, const TokenSpan<D>& x, typename D::V::F* acc) {
  using V = typename D::V;
  constexpr int U = T - From < D::kUnroll ? T - From : D::kUnroll;
  typename V::I sums[U];
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u) sums[u] = D::kZero ? V::set_int(-D::kZero * x.s[From + u]) : V::zero_int();
  D::template dot<U>(weights, x.q + From * quant::kGroup, sums);
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u) {
    const int t = From + u;
    acc[t] = V::fma(V::to_float(sums[u]), V::mul(scale, V::set(x.d[t])), acc[t]);
    if constexpr (D::kFormat == quant::Format::q4_1) {
      acc[t] = V::fma(offset, V::set(x.d[t] * static_cast<float>(x.s[t])), acc[t]);
    }
  }
  if constexpr (From + U < T) group_tokens<D, T, From + U>(weights, scale, offset, x, acc);
}

// P strips from row `lane` of the row block at w, T tokens. P > 1 only where one token would leave lines of
// the weight stream half used: all strips of a row block then read it together.
template <class D, int P, int T, Cache kStream>
void quant_strips(const uint8_t* w, size_t lane, size_t col_blocks, TokenSpan<D> x, float* out,
                  ptrdiff_t ldo) {
  using V = typename D::V;
  using Bytes = GroupBytes<D>;
  // One token is bound by the stream alone: a block's lines at once, 6 KiB ahead. With more, products lie
  // between the loads: lines come group by group behind them, 10 KiB ahead. Into L2, one token's bytes are
  // best fetched 2 KiB ahead, its nibbles not at all (docs/decisions/log.md).
  constexpr Cache kTo = T == 1 && D::kFormat != quant::Format::q8_0 ? kL1 : kStream;
  constexpr size_t ahead = T > 1 ? 10240 : kTo == kL2 ? 2048 : 6144;
  typename V::F acc[P][T];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[p][t] = V::zero();
  }
  for (size_t block = 0; block < col_blocks; ++block, w += Bytes::kBlock) {
    prefetch<T == 1 ? Bytes::kBlock : Bytes::kCodesStart, kTo>(w + ahead);
#pragma GCC unroll 1
    for (int g = 0; g < 2; ++g, x.next_group()) {
      const uint8_t* codes = w + Bytes::kCodesStart + static_cast<size_t>(g) * Bytes::kCodes;
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        const size_t row = lane + static_cast<size_t>(p) * V::kLanes;
        const auto* scales = reinterpret_cast<const uint16_t*>(w) + g * quant::kRowBlock + row;
        const typename V::F scale = V::load_f16(scales);
        typename V::F offset = scale;
        if constexpr (D::kFormat == quant::Format::q4_1) offset = V::load_f16(scales + 2 * quant::kRowBlock);
        const typename D::Weights weights = D::load(codes + row * 4);
        group_tokens<D, T>(weights, scale, offset, x, acc[p]);
      }
      if constexpr (T > 1) prefetch<Bytes::kCodes, kTo>(codes + ahead);
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) V::store(out + t * ldo + p * V::kLanes, acc[p][t]);
  }
}

// All strips of one row block for exactly n = T tokens.
template <class D, int T>
HOTSET_INLINE void quant_row_block(size_t n, const uint8_t* w, size_t col_blocks, const TokenSpan<D>& x,
                                   float* out, ptrdiff_t ldo) {
  constexpr int strips = static_cast<int>(quant::kRowBlock) / D::V::kLanes;
  if (n == T) {
    constexpr int together = T == 1 ? strips : 1;
    for (int p = 0; p < strips; p += together) {
      const size_t lane = static_cast<size_t>(p) * D::V::kLanes;
      if (kStreamToL2)
        quant_strips<D, together, T, kL2>(w, lane, col_blocks, x, out + lane, ldo);
      else
        quant_strips<D, together, T, kL1>(w, lane, col_blocks, x, out + lane, ldo);
    }
  } else if constexpr (T > 1) {
    quant_row_block<D, T - 1>(n, w, col_blocks, x, out, ldo);
  }
}

template <class D>
void matmul_quant(const uint8_t* w, size_t row_blocks, size_t col_blocks, const QTile& x, float* out,
                  ptrdiff_t ldo) {
  for (size_t b = 0; b < row_blocks; ++b, w += col_blocks * GroupBytes<D>::kBlock, out += quant::kRowBlock) {
    for (size_t t = 0; t < x.n; t += D::kTokens) {
      const size_t n = x.n - t < D::kTokens ? x.n - t : D::kTokens;
      const TokenSpan<D> span{x.q + t * quant::kGroup, x.d + t, x.s + t, x.n};
      quant_row_block<D, D::kTokens>(n, w, col_blocks, span, out + static_cast<ptrdiff_t>(t) * ldo, ldo);
    }
  }
}

}  // namespace hotset::kernels::generic
