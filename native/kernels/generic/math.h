// exp, sigmoid and GELU over V. Relative error about 1e-7 (exp), a few 1e-7 (others).
#pragma once

#include "kernels/generic/vec.h"

namespace hotset::kernels::generic {

// e^x = 2^k e^r, |r| <= ln2/2, e^r by its Taylor polynomial (next term < 6e-9). Below -87.3 the result is 0,
// above 88.37 infinity: e^-inf is exactly 0, and x / (1 + e^-x) goes to 0 on the left. kBounded: x is below
// that.
template <class V, bool kBounded = false>
HOTSET_INLINE typename V::F exp(typename V::F x) {
  using F = typename V::F;
  const F lowest = V::set(-87.3f), highest = V::set(88.37f);
  const F above = V::max(x, lowest), y = kBounded ? above : V::min(above, highest);
  const F k = V::round(V::mul(y, V::set(1.44269504088896f)));
  F r =
      V::fma(k, V::set(-0.693359375f), y);  // ln2 in two parts: the first has 9 bits, so k times it is exact
  r = V::fma(k, V::set(2.12194440e-4f), r);
  F p = V::set(1.0f / 5040);
  p = V::fma(p, r, V::set(1.0f / 720));
  p = V::fma(p, r, V::set(1.0f / 120));
  p = V::fma(p, r, V::set(1.0f / 24));
  p = V::fma(p, r, V::set(1.0f / 6));
  p = V::fma(p, r, V::set(0.5f));
  p = V::fma(p, r, V::set(1.0f));
  p = V::fma(p, r, V::set(1.0f));
  const F power = V::mul(p, V::pow2(k));
  const F bounded = kBounded ? power : V::less(highest, x, V::set(__builtin_inff()), power);
  return V::less(x, lowest, V::zero(), bounded);
}

// x * sigmoid(a)
template <class V>
HOTSET_INLINE typename V::F gated_sigmoid(typename V::F x, typename V::F a) {
  return V::div(x, V::add(V::set(1.0f), exp<V>(V::sub(V::zero(), a))));
}

template <class V>
HOTSET_INLINE typename V::F gelu_tanh(typename V::F x) {  // (1 + tanh u) / 2 = sigmoid(2u)
  using F = typename V::F;
  const F cubic = V::fma(V::mul(V::mul(x, x), x), V::set(0.044715f), x);
  return gated_sigmoid<V>(x, V::mul(cubic, V::set(1.5957691216057308f)));  // 2 sqrt(2/pi)
}

// erfc(z), z >= 0, by the Chebyshev fit of Numerical Recipes, 2nd ed., section 6.2: t exp(-z^2 + P(t)),
// t = 1 / (1 + z/2), relative error below 1.2e-7 before rounding.
template <class V>
HOTSET_INLINE typename V::F erfc_positive(typename V::F z) {
  using F = typename V::F;
  const F t = V::div(V::set(1.0f), V::fma(z, V::set(0.5f), V::set(1.0f)));
  F p = V::set(0.17087277f);
  p = V::fma(p, t, V::set(-0.82215223f));
  p = V::fma(p, t, V::set(1.48851587f));
  p = V::fma(p, t, V::set(-1.13520398f));
  p = V::fma(p, t, V::set(0.27886807f));
  p = V::fma(p, t, V::set(-0.18628806f));
  p = V::fma(p, t, V::set(0.09678418f));
  p = V::fma(p, t, V::set(0.37409196f));
  p = V::fma(p, t, V::set(1.00002368f));
  p = V::fma(p, t, V::set(-1.26551223f));
  return V::mul(t, exp<V>(V::fma(V::sub(V::zero(), z), z, p)));
}

template <class V>
HOTSET_INLINE typename V::F gelu(
    typename V::F x) {  // x Phi(x); the small tail is computed, never subtracted from 1
  using F = typename V::F;
  const F negative = V::sub(V::zero(), x), magnitude = V::max(x, negative);
  const F tail =
      V::mul(V::mul(x, V::set(0.5f)), erfc_positive<V>(V::mul(magnitude, V::set(0.70710678118654752f))));
  return V::less(x, V::zero(), tail, V::sub(x, tail));
}

}  // namespace hotset::kernels::generic
