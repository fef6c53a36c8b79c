// Norms, activations, rotation, quantization of activations.
#pragma once

#include "kernels/generic/math.h"
#include "kernels/kernels.h"

namespace hotset::kernels::generic {

template <class V>
void add(const float* x, size_t n, float* y) {
  map<V>(y, x, n, [](typename V::F a, typename V::F b) { return V::add(a, b); });
}

template <class V>
float sum_of_squares(const float* x, size_t n, float mean) {
  using F = typename V::F;
  const F m = V::set(mean);
  return V::sum(reduce<V>(
      x, n, V::zero(), mean, [m](F acc, F v) { return V::fma(V::sub(v, m), V::sub(v, m), acc); },
      [](F a, F b) { return V::add(a, b); }));
}

// y = (x - mean) * scale * w + b
template <class V>
void normalize(const float* x, float mean, float scale, const float* w, const float* b, size_t n, float* y) {
  using F = typename V::F;
  const F m = V::set(mean), s = V::set(scale);
  if (y != x) __builtin_memmove(y, x, n * sizeof(float));
  if (w) {
    map<V>(y, w, n, [=](F v, F weight) { return V::mul(V::mul(V::sub(v, m), s), weight); });
  } else {
    map<V>(y, y, n, [=](F v, F) { return V::mul(V::sub(v, m), s); });
  }
  if (b) add<V>(b, n, y);
}

template <class V>
void rms_norm(const float* x, const float* w, float eps, size_t n, float* y) {
  const float mean_square = sum_of_squares<V>(x, n, 0.0f) / static_cast<float>(n);
  normalize<V>(x, 0.0f, 1.0f / __builtin_sqrtf(mean_square + eps), w, nullptr, n, y);
}

template <class V>
void layer_norm(const float* x, const float* w, const float* b, float eps, size_t n, float* y) {
  using F = typename V::F;
  const auto plus = [](F acc, F v) { return V::add(acc, v); };
  const float mean = V::sum(reduce<V>(x, n, V::zero(), 0.0f, plus, plus)) / static_cast<float>(n);
  const float variance = sum_of_squares<V>(x, n, mean) / static_cast<float>(n);
  normalize<V>(x, mean, 1.0f / __builtin_sqrtf(variance + eps), w, b, n, y);
}

template <class V>
void activate(Activation f, float threshold, size_t n, float* x) {
  using F = typename V::F;
  const auto apply = [&](auto fn) { map<V>(x, x, n, [fn](F v, F) { return fn(v); }); };
  switch (f) {
    case Activation::none:
      return;
    case Activation::silu:
      return apply([](F v) { return gated_sigmoid<V>(v, v); });
    case Activation::gelu:
      return apply([](F v) { return gelu<V>(v); });
    case Activation::gelu_tanh:
      return apply([](F v) { return gelu_tanh<V>(v); });
    case Activation::relu:
      return apply([](F v) { return V::max(v, V::zero()); });
    case Activation::relu2:
      return apply([](F v) {
        const F positive = V::max(v, V::zero());
        return V::mul(positive, positive);
      });
    case Activation::shifted_relu:
      return apply([threshold](F v) { return V::less(V::set(threshold), v, v, V::zero()); });
  }
}

template <class V>
void glu(Activation f, float f_threshold, Activation h, float h_threshold, const float* up, size_t n,
         float* gate) {
  using F = typename V::F;
  constexpr size_t chunk = 256;  // stays in L1 between the passes
  float branch[chunk];
  for (size_t i = 0; i < n; i += chunk) {
    const size_t count = n - i < chunk ? n - i : chunk;
    const float* factor = up + i;
    if (h != Activation::none) {
      __builtin_memcpy(branch, factor, count * sizeof(float));
      activate<V>(h, h_threshold, count, branch);
      factor = branch;
    }
    activate<V>(f, f_threshold, count, gate + i);
    map<V>(gate + i, factor, count, [](F a, F b) { return V::mul(a, b); });
  }
}

// The mean of max(x + s e, 0) for normal e, within 3 % down to -3.5 s: max(x, 0) and, by z = |x| / s, s times
// what the tail gives, phi(z) - z Q(z), here as phi(z) / (1 + 1.13 z + 0.775 z^2).
template <class V>
HOTSET_INLINE typename V::F expected_relu(typename V::F x, typename V::F s) {
  using F = typename V::F;
  const F positive = V::max(x, V::zero()), size = V::max(x, V::sub(V::zero(), x));
  const F z = V::div(size, V::max(s, V::set(1e-18f)));
  const F phi = V::mul(V::set(0.398942280f), exp<V>(V::mul(V::mul(z, z), V::set(-0.5f))));
  const F below = V::fma(V::fma(z, V::set(0.775f), V::set(1.13f)), z, V::set(1.0f));
  return V::fma(s, V::div(phi, below), positive);
}

template <class V>
void expected(Activation f, float threshold, const float* noise, size_t n, float* x) {
  using F = typename V::F;
  const auto apply = [&](auto fn) { map<V>(x, noise, n, fn); };
  switch (f) {
    case Activation::none:  // both tails
      return apply([](F v, F s) {
        const F size = V::max(v, V::sub(V::zero(), v)), mean = expected_relu<V>(size, s);
        return V::add(mean, V::sub(mean, size));
      });
    case Activation::relu:
      return apply([](F v, F s) { return expected_relu<V>(v, s); });
    case Activation::relu2:
      return apply([](F v, F s) {
        const F mean = expected_relu<V>(v, s);
        return V::mul(mean, mean);
      });
    case Activation::shifted_relu:  // threshold and what is above, both as far as it is likely
      return apply([threshold](F v, F s) {
        const F mean = expected_relu<V>(V::sub(v, V::set(threshold)), s);
        const F likely = V::div(mean, V::add(V::add(mean, s), V::set(1e-18f)));
        return V::fma(V::set(threshold), likely, mean);
      });
    case Activation::silu:
    case Activation::gelu:
    case Activation::gelu_tanh:
      return activate<V>(f, threshold, n, x);
  }
}

template <class V>
void rope(const float* cos, const float* sin, size_t half, float* x) {
  using F = typename V::F;
  const auto rotate = [](F c, F s, F& a, F& b) {
    const F first = V::sub(V::mul(a, c), V::mul(b, s));
    b = V::add(V::mul(b, c), V::mul(a, s));
    a = first;
  };
  size_t i = 0;
  for (; i + V::kLanes <= half; i += V::kLanes) {
    F a = V::load(x + i), b = V::load(x + half + i);
    rotate(V::load(cos + i), V::load(sin + i), a, b);
    V::store(x + i, a);
    V::store(x + half + i, b);
  }
  if (const size_t rest = half - i; rest > 0) {
    F a = load_partial<V>(x + i, rest, 0), b = load_partial<V>(x + half + i, rest, 0);
    rotate(load_partial<V>(cos + i, rest, 0), load_partial<V>(sin + i, rest, 0), a, b);
    store_partial<V>(x + i, rest, a);
    store_partial<V>(x + half + i, rest, b);
  }
}

template <class V>
HOTSET_INLINE float largest_magnitude(const float* x, size_t n) {
  using F = typename V::F;
  return V::max_lane(reduce<V>(
      x, n, V::zero(), 0.0f, [](F acc, F v) { return V::max(V::max(v, V::sub(V::zero(), v)), acc); },
      [](F a, F b) { return V::max(a, b); }));
}

// 127 / top, 0 for magnitudes below 1e-35, whose inverse overflows, and for infinity.
template <class V>
HOTSET_INLINE typename V::F inverse_scale(typename V::F top) {
  const typename V::F inverse = V::div(V::set(127.0f), top);
  return V::less(V::set(1e-35f), top, V::less(top, V::set(__builtin_inff()), inverse, V::zero()), V::zero());
}

// q = round(x * inverse) of a group; returns their sum, which is exact, or NaN if there is a NaN or infinity
// in x.
template <class V>
HOTSET_INLINE float quantize_group(float inverse, const float* x, int8_t* q) {
  using F = typename V::F;
  F codes = V::zero();
  for (size_t i = 0; i < quant::kGroup; i += V::kLanes) {
    const F code = V::round(V::mul(V::load(x + i), V::set(inverse)));
    V::store_i8(q + i, code);
    codes = V::add(codes, code);
  }
  return V::sum(codes);
}

template <class V>
HOTSET_INLINE float group_magnitude(const float* x) {
  using F = typename V::F;
  F top = V::zero();
  for (size_t i = 0; i < quant::kGroup; i += V::kLanes) {
    const F v = V::load(x + i);
    top = V::max(V::max(v, V::sub(V::zero(), v)), top);
  }
  return V::max_lane(top);
}

// The groups of x[cols], padded with zeros to whole ones and then with groups of zeros.
class PaddedGroups {
 public:
  PaddedGroups(const float* x, size_t cols) : x_(x), whole_(cols / quant::kGroup) {
    __builtin_memcpy(last_, x + whole_ * quant::kGroup, cols % quant::kGroup * sizeof(float));
  }
  HOTSET_INLINE const float* operator[](size_t g) const {
    return g < whole_ ? x_ + g * quant::kGroup : g == whole_ ? last_ : zeros_;
  }

 private:
  const float* x_;
  size_t whole_;
  float last_[quant::kGroup] = {}, zeros_[quant::kGroup] = {};
};

// Groups [first, first + count), count <= kBatch: the i-th one's codes go to q + i * stride * kGroup. With a
// NaN or infinity in it, codes and sum are 0 and the scale is NaN, so that it shows in every product. In two
// passes, as the way from a group's values to its maximum to its codes is mostly latency.
inline constexpr size_t kBatch = 16;
template <class V>
HOTSET_INLINE void quantize_batch(const PaddedGroups& groups, size_t first, size_t count, size_t stride,
                                  int8_t* q, float* d, int32_t* s) {
  using F = typename V::F;
  float top[kBatch] = {}, inverse[kBatch], scale[kBatch];
  for (size_t i = 0; i < count; ++i) top[i] = group_magnitude<V>(groups[first + i]);
  for (size_t i = 0; i < kBatch; i += V::kLanes) {
    const F t = V::load(top + i), inv = inverse_scale<V>(t);
    V::store(inverse + i, inv);
    V::store(scale + i, V::less(V::zero(), inv, V::div(t, V::set(127.0f)), V::zero()));
  }
  for (size_t i = 0; i < count; ++i) {
    int8_t* to = q + i * stride * quant::kGroup;
    const float sum = quantize_group<V>(inverse[i], groups[first + i], to);
    const bool finite = sum == sum;
    if (!finite) __builtin_memset(to, 0, quant::kGroup);
    d[i * stride] = finite ? scale[i] : __builtin_nanf("");
    s[i * stride] = finite ? static_cast<int32_t>(sum) : 0;
  }
}

template <class V>
void quantize(const float* x, size_t cols, const QTile& tile, size_t t) {
  constexpr size_t each = quant::kColBlock / quant::kGroup;
  const size_t count = (cols + quant::kColBlock - 1) / quant::kColBlock * each;
  const PaddedGroups groups(x, cols);
  for (size_t g = 0; g < count; g += kBatch) {
    const size_t n = count - g < kBatch ? count - g : kBatch, at = g * tile.n + t;
    quantize_batch<V>(groups, g, n, tile.n, tile.q + at * quant::kGroup, tile.d + at, tile.s + at);
  }
}

}  // namespace hotset::kernels::generic
