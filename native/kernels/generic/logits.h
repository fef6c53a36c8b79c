// Passes over the logits of one token, a vocabulary long.
#pragma once

#include "kernels/generic/math.h"
#include "kernels/kernels.h"

namespace hotset::kernels::generic {

template <class V>
float largest(const float* x, size_t n) {
  using F = typename V::F;
  const auto larger = [](F a, F v) { return V::max(v, a); };
  const float lowest = -__builtin_inff();
  return V::max_lane(reduce<V>(x, n, V::set(lowest), lowest, larger, larger));
}

template <class V>
void logsumexp(const float* x, size_t n, float* max, float* lse) {
  using F = typename V::F;
  constexpr size_t chunk = 4096;  // f32 sums of one chunk are added in double: vocabularies reach 2^18
  *max = largest<V>(x, n);
  if (*max == -__builtin_inff()) {
    *lse = *max;
    return;
  }
  const F top = V::set(*max);
  double total = 0;
  for (size_t i = 0; i < n; i += chunk) {
    total += static_cast<double>(V::sum(reduce<V>(
        x + i, n - i < chunk ? n - i : chunk, V::zero(), -__builtin_inff(),
        [top](F acc, F v) { return V::add(acc, exp<V>(V::sub(v, top))); },
        [](F a, F b) { return V::add(a, b); })));
  }
  *lse = static_cast<float>(*max + __builtin_log(total));
}

template <class V>
bool block_maxima(const float* x, size_t n, float* maxima) {
  using F = typename V::F;
  F poison = V::zero();  // 0, until a NaN or infinity makes it NaN
  for (size_t begin = 0; begin < n; begin += kMaximaBlock, ++maxima) {
    const size_t end = begin + kMaximaBlock < n ? begin + kMaximaBlock : n;
    F top = V::set(-__builtin_inff()), zeros = V::zero();
    const auto take = [&](F v) {
      top = V::max(v, top);
      zeros = V::fma(v, V::zero(), zeros);
    };
    size_t i = begin;
    for (; i + V::kLanes <= end; i += V::kLanes) take(V::load(x + i));
    if (i < end) take(load_partial<V>(x + i, end - i, x[i]));
    *maxima = V::max_lane(top);
    poison = V::add(poison, zeros);
  }
  return V::sum(poison) == 0.0f;
}

// exp(x) for x <= 0, within 2 ulp, 0 below -87. As exp() in math.h, but without fused operations, which
// older CPUs lack.
template <class V>
HOTSET_INLINE typename V::F exp_unfused(typename V::F x) {
  using F = typename V::F;
  const F lowest = V::set(-87.0f), y = V::max(x, lowest);
  const F k = V::round(V::mul(y, V::set(1.44269504088896f)));
  const F r = V::sub(V::sub(y, V::mul(k, V::set(0.693359375f))), V::mul(k, V::set(-2.12194440e-4f)));
  constexpr float taylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  F p = V::set(1.0f / 5040);
#pragma GCC unroll 8
  for (const float c : taylor) p = V::add(V::mul(p, r), V::set(c));
  return V::less(x, lowest, V::zero(), V::mul(p, V::pow2(k)));
}

// Sixteen sums side by side, whatever the width of a vector, joined in pairs.
template <class V>
void softmax_weights(const float* x, size_t n, float max, float scale, float* p, float* sums) {
  using F = typename V::F;
  constexpr int kLanes = 16, kVectors = kLanes / V::kLanes;
  const F top = V::set(max), factor = V::set(scale);
  for (size_t begin = 0; begin < n; begin += kWeightsBlock, ++sums) {
    const size_t end = begin + kWeightsBlock < n ? begin + kWeightsBlock : n;
    F chains[kVectors];
    for (F& chain : chains) chain = V::zero();
    const auto take = [&](const float* from, float* to) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const F weight = exp_unfused<V>(V::mul(V::sub(V::load(from + v * V::kLanes), top), factor));
        V::store(to + v * V::kLanes, weight);
        chains[v] = V::add(chains[v], weight);
      }
    };
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) take(x + i, p + i);
    float lanes[kLanes];
    if (i < end) {
      for (size_t j = 0; j < kLanes; ++j) lanes[j] = i + j < end ? x[i + j] : -__builtin_inff();
      take(lanes, lanes);
      __builtin_memcpy(p + i, lanes, (end - i) * sizeof(float));
    }
    for (int v = 0; v < kVectors; ++v) V::store(lanes + v * V::kLanes, chains[v]);
    for (int width = kLanes / 2; width > 0; width /= 2)
      for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    *sums = lanes[0];
  }
}

}  // namespace hotset::kernels::generic
