// Random cases for the kernels and their references in double. Shared by the tests and the fuzzer: a case is
// made from a generator alone, checks one ISA against the reference, and checks that cutting the work changes
// no bit.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/kernels.h"
#include "quant/codec.h"

namespace cases {

using hotset::kernels::Kernels;
using hotset::quant::Format;

inline constexpr double kUnit = 0x1p-24;  // relative error of one f32 rounding

class Rng {
 public:
  explicit Rng(uint64_t seed) : engine_(seed) {}
  size_t between(size_t lo, size_t hi) { return lo + engine_() % (hi - lo + 1); }
  bool one_in(size_t n) { return engine_() % n == 0; }
  float normal() { return static_cast<float>(std::normal_distribution<double>()(engine_)); }
  template <class T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[engine_() % choices.size()];
  }
  // n normal values times `scale`; sometimes all zero, sometimes with outliers, as activations have them.
  std::vector<float> values(size_t n, float scale) {
    std::vector<float> out(n);
    const bool zero = one_in(20), outliers = one_in(4);
    for (float& x : out) x = zero ? 0.0f : normal() * scale * (outliers && one_in(50) ? 50.0f : 1.0f);
    return out;
  }

 private:
  std::mt19937_64 engine_;
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// got within tolerance of want; says where if not.
inline bool close(double got, double want, double tolerance, const char* isa, const char* what,
                  size_t index) {
  if (CHECK(std::abs(got - want) <= tolerance)) return true;
  if (check::failures <= check::kShown) {
    std::fprintf(stderr, "  %s %s[%zu]: got %.9g, want %.9g, tolerance %.3g\n", isa, what, index, got, want,
                 tolerance);
  }
  return false;
}

template <class Body>
void for_each_isa(Body&& body) {
  size_t count = 0;
  const hotset::kernels::IsaInfo* isas = hotset::kernels::isa_list(&count);
  for (size_t i = 0; i < count; ++i) {
    if (isas[i].supported) body(*isas[i].kernels);
  }
}

// Each builds one random case and checks it on one ISA. The same generator state gives the same case on all.
void check_matmul_quantized(const Kernels& k, Rng rng);
void check_matmul_float(const Kernels& k, Rng rng);
void check_attend(const Kernels& k, Rng rng);
void check_norms(const Kernels& k, Rng rng);
void check_activations(const Kernels& k, Rng rng);
void check_expected(const Kernels& k, Rng rng);
void check_rope_add(const Kernels& k, Rng rng);
void check_logits(const Kernels& k, Rng rng);
void check_quantize(const Kernels& k, Rng rng);
void check_neuron_dots(const Kernels& k, Rng rng);
void check_neuron_sums(const Kernels& k, Rng rng);
void check_largest_sums(const Kernels& k, Rng rng);
void check_neuron_packing(const Kernels& k, Rng rng);
void check_sketch_dots(const Kernels& k, Rng rng);

struct Case {
  const char* name;
  void (*check)(const Kernels&, Rng);
};
inline constexpr Case kCases[] = {{"matmul_quantized", check_matmul_quantized},
                                  {"matmul_float", check_matmul_float},
                                  {"attend", check_attend},
                                  {"norms", check_norms},
                                  {"activations", check_activations},
                                  {"expected", check_expected},
                                  {"rope_add", check_rope_add},
                                  {"logits", check_logits},
                                  {"quantize", check_quantize},
                                  {"neuron_dots", check_neuron_dots},
                                  {"neuron_sums", check_neuron_sums},
                                  {"largest_sums", check_largest_sums},
                                  {"neuron_packing", check_neuron_packing},
                                  {"sketch_dots", check_sketch_dots}};

}  // namespace cases
