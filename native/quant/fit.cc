#include "quant/fit.h"

#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace hotset::quant {

namespace {

// GCC and Clang vector extension: SSE2 and NEON are the baselines of their machines, so no dispatch is
// needed.
using F4 = float __attribute__((vector_size(16)));
using I4 = int32_t __attribute__((vector_size(16)));

F4 load(const float* p) {
  F4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
void store(float* p, F4 v) { std::memcpy(p, &v, sizeof v); }
F4 splat(float x) { return F4{x, x, x, x}; }
F4 select(I4 mask, F4 yes, F4 no) {
  return reinterpret_cast<F4>((mask & reinterpret_cast<I4>(yes)) | (~mask & reinterpret_cast<I4>(no)));
}
#if defined(__SSE2__)  // GCC 12 does not see these two instructions behind the selects: half of encode's time
F4 min(F4 a, F4 b) { return _mm_min_ps(a, b); }
F4 max(F4 a, F4 b) { return _mm_max_ps(a, b); }
#else
F4 min(F4 a, F4 b) { return select(a < b, a, b); }
F4 max(F4 a, F4 b) { return select(a > b, a, b); }
#endif
F4 abs(F4 x) { return reinterpret_cast<F4>(reinterpret_cast<I4>(x) & 0x7fffffff); }

// Nearest integer, ties to even, for |x| < 2^22: at 1.5 * 2^23 the spacing of floats is 1.
F4 round_int(F4 x) {
  const F4 magic = splat(12582912.0f);
  return (x + magic) - magic;
}

// x rounded to 11 significant bits (Veltkamp's splitting) and, below 2^-14, to a multiple of 2^-24: a value
// that f16 holds exactly. |x| must not exceed 65504.
F4 round_f16(F4 x) {
  const F4 c = x * 8193.0f;
  const F4 normal = c - (c - x);
  const F4 magic = splat(0.75f);
  const F4 subnormal = (x + magic) - magic;
  return select(abs(x) < splat(0x1p-14f), subnormal, normal);
}

// 1 / x, or 0 where x is 0 or so small that the quotient could overflow (f16 has no scale that small).
F4 inverse(F4 x) {
  const I4 usable = abs(x) > splat(1e-30f);
  return select(usable, 1.0f / select(usable, x, splat(1.0f)), splat(0.0f));
}

F4 quantize(F4 x, F4 inv, float lo, float hi) { return min(max(round_int(x * inv), splat(lo)), splat(hi)); }

F4 clamp_f16(F4 x) { return min(max(x, splat(-65504.0f)), splat(65504.0f)); }

// Codes that the extreme weight is tried at. Below the end of the range finer steps for all others are given
// up, above it the extreme weight is clipped. Negative ones use the longer, negative half of the code range.
constexpr float kTargets4[] = {-8.0f, -7.75f, -7.5f, -7.25f, -7.0f, -8.25f, -8.5f, -8.75f,
                               -9.0f, -9.5f,  7.0f,  6.75f,  7.25f, 7.5f,   7.75f};
constexpr float kTargets8[] = {-128.0f, -127.5f, -127.0f, -126.0f, -125.0f, 127.0f};
// Shares of the range cut off at the low and the high end for q4_1.
constexpr float kCuts[][2] = {
    {0, 0},         {0.02f, 0},  {0, 0.02f},  {0.02f, 0.02f},   {0.04f, 0.04f}, {0.05f, 0},    {0, 0.05f},
    {0.07f, 0.07f}, {-0.02f, 0}, {0, -0.02f}, {-0.02f, -0.02f}, {0.08f, 0.02f}, {0.02f, 0.08f}};

F4 extreme(const FitInput& in) {  // the weight of largest magnitude, with its sign
  F4 best = splat(0.0f);
  for (size_t i = 0; i < in.cols; ++i) {
    const F4 w = load(in.w[i]);
    best = select(abs(w) > abs(best), w, best);
  }
  return best;
}

// What scale loses with the codes nearest to it.
F4 squared_error(const FitInput& in, F4 scale, float lo, float hi) {
  const F4 inv = inverse(scale);
  F4 sum = splat(0.0f);
  for (size_t i = 0; i < in.cols; ++i) {
    const F4 w = load(in.w[i]), error = w - scale * quantize(w, inv, lo, hi);
    sum += error * error;
  }
  return sum;
}

template <size_t kTargets>
F4 best_symmetric_scale(const FitInput& in, const float (&targets)[kTargets], float lo, float hi) {
  const F4 largest = extreme(in), inv_extreme = inverse(largest);
  F4 best_scale = splat(0.0f), best_gain = splat(0.0f);
  for (const float target : targets) {
    const F4 inv = inv_extreme * target;
    F4 wq = splat(0.0f), qq = splat(0.0f);
    for (size_t i = 0; i < in.cols; ++i) {
      const F4 w = load(in.w[i]), q = quantize(w, inv, lo, hi);
      wq += w * q;
      qq += q * q;
    }
    const F4 scale = round_f16(clamp_f16(wq * inverse(qq)));
    const F4 gain = scale * (wq + wq - scale * qq);  // squared weight minus squared error
    const I4 better =
        gain > best_gain * 1.0000003f;  // more than rounding: exact fits of the first target stay
    best_scale = select(better, scale, best_scale);
    best_gain = select(better, gain, best_gain);
  }
  // Gains are of the codes before the scale was rounded to f16: never lose to the plain scale by that.
  const F4 plain = round_f16(clamp_f16(largest / targets[0]));
  return select(squared_error(in, plain, lo, hi) < squared_error(in, best_scale, lo, hi), plain, best_scale);
}

struct Line {
  F4 scale, offset;
};

// Least squares over weights relative to `mid`, which keeps the sums well conditioned.
Line best_affine(const FitInput& in) {
  F4 lo = load(in.w[0]), hi = lo;
  for (size_t i = 1; i < in.cols; ++i) {
    lo = min(lo, load(in.w[i]));
    hi = max(hi, load(in.w[i]));
  }
  const F4 mid = lo * 0.5f + hi * 0.5f, range = hi - lo;
  const float n = static_cast<float>(in.cols);
  F4 sum = splat(0.0f);
  for (size_t i = 0; i < in.cols; ++i) sum += load(in.w[i]) - mid;
  Line best{splat(0.0f), round_f16(mid + sum / n)};
  F4 d = best.offset - mid, best_loss = d * (n * d - 2.0f * sum);
  for (const auto& cut : kCuts) {
    const F4 inv = 15.0f * inverse(range * (1.0f - cut[0] - cut[1])), start = lo - mid + range * cut[0];
    F4 q1 = splat(0.0f), qq = splat(0.0f), wq = splat(0.0f);
    for (size_t i = 0; i < in.cols; ++i) {
      const F4 w = load(in.w[i]) - mid, q = quantize(w - start, inv, 0.0f, 15.0f);
      q1 += q;
      qq += q * q;
      wq += w * q;
    }
    const F4 scale = round_f16((n * wq - sum * q1) * inverse(n * qq - q1 * q1));
    const F4 offset = round_f16(clamp_f16((sum - scale * q1) / n + mid));
    d = offset - mid;
    const F4 loss = scale * (scale * qq - 2.0f * wq) + d * (n * d - 2.0f * sum + 2.0f * scale * q1);
    const I4 better = loss < best_loss;
    best = {select(better, scale, best.scale), select(better, offset, best.offset)};
    best_loss = select(better, loss, best_loss);
  }
  return best;
}

void assign_codes(const FitInput& in, Line line, float lo, float hi, FitResult& out) {
  const F4 inv = inverse(line.scale);
  F4 error2 = splat(0.0f), weight2 = splat(0.0f), worst = splat(0.0f);
  for (size_t i = 0; i < in.cols; ++i) {
    const F4 w = load(in.w[i]), q = quantize(w - line.offset, inv, lo, hi);
    const F4 error = w - (line.scale * q + line.offset);
    error2 += error * error;
    weight2 += w * w;
    worst = max(worst, abs(error));
    store(out.code[i], q);
  }
  for (size_t i = in.cols; i < kGroup; ++i) store(out.code[i], splat(0.0f));
  store(out.scale, line.scale);
  store(out.offset, line.offset);
  store(out.squared_error, error2);
  store(out.squared_weight, weight2);
  store(out.max_abs_error, worst);
}

}  // namespace

void fit(Format f, const FitInput& in, FitResult& out) {
  const F4 zero = splat(0.0f);
  if (f == Format::q8_0) {
    assign_codes(in, {best_symmetric_scale(in, kTargets8, -128, 127), zero}, -128, 127, out);
  } else if (f == Format::q4_0) {
    assign_codes(in, {best_symmetric_scale(in, kTargets4, -8, 7), zero}, -8, 7, out);
  } else {
    assign_codes(in, best_affine(in), 0, 15, out);
  }
}

}  // namespace hotset::quant
