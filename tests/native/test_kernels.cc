// Every kernel on every ISA of this machine, on random shapes and scales with fixed seeds.
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernel_cases.h"

namespace {

using namespace hotset;
using quant::Format;

void test_random_cases() {
  cases::for_each_isa([](const kernels::Kernels& k) {
    for (const cases::Case& c : cases::kCases) {
      const int before = check::failures;
      for (uint64_t seed = 0; seed < 60; ++seed) c.check(k, cases::Rng(seed));
      if (check::failures != before) std::fprintf(stderr, "%s %s failed\n", k.isa, c.name);
    }
  });
}

// No rows, no pages: nothing to do, nothing touched.
void test_empty() {
  cases::for_each_isa([](const kernels::Kernels& k) {
    int8_t q[32] = {};
    float d[1] = {}, out[1] = {5.0f};
    int32_t s[1] = {};
    k.matmul_q4_0(nullptr, 0, 1, {q, d, s, 1}, out, 16);
    k.matmul_f32(nullptr, 0, 1, d, 64, 1, out, 16);
    k.add(nullptr, 0, nullptr);
    k.attend(kernels::KvType::f16, nullptr, 0, 0,
             {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 1, 16});
    CHECK(out[0] == 5.0f);
  });
}

// NaN and infinity: nothing crashes, and a quantized product shows them.
void test_non_finite() {
  cases::for_each_isa([](const kernels::Kernels& k) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      constexpr size_t n = 64;
      std::vector<float> x(n, 1.0f), y = x, out(16);
      x[37] = bad;
      int8_t q[n];
      float d[2], max, lse;
      int32_t s[2];
      k.quantize(x.data(), n, {q, d, s, 1}, 0);
      CHECK(d[0] == 1.0f / 127 && s[0] == 32 * 127 && std::isnan(d[1]) && s[1] == 0 && q[37] == 0);
      const std::vector<uint8_t> w(quant::packed_bytes(Format::q4_0, 16, n));
      k.matmul_q4_0(w.data(), 1, 1, {q, d, s, 1}, out.data(), 16);
      CHECK(std::isnan(out[0]));
      for (int f = 0; f <= static_cast<int>(kernels::Activation::shifted_relu); ++f) {
        k.glu(static_cast<kernels::Activation>(f), 0, kernels::Activation::silu, 0, x.data(), n, y.data());
      }
      k.rms_norm(x.data(), nullptr, 1e-5f, n, y.data());
      k.layer_norm(x.data(), nullptr, nullptr, 1e-5f, n, y.data());
      k.logsumexp(x.data(), n, &max, &lse);
      CHECK(!k.block_maxima(x.data(), n, y.data()));
    }
  });
}

// A value that is not finite shows in what attends to it.
void test_non_finite_value() {
  cases::for_each_isa([](const kernels::Kernels& k) {
    constexpr size_t hd = 32;
    for (const kernels::KvType type : {kernels::KvType::f16, kernels::KvType::int8})
      for (const float bad : {NAN, INFINITY}) {
        const std::vector<float> key(hd, 1.0f), q(hd, 0.1f);
        std::vector<float> value(hd, 1.0f), o(hd);
        value[7] = bad;
        std::vector<uint8_t> page(kernels::kv_page_bytes(type, hd), 0xff);
        k.kv_store(type, key.data(), value.data(), hd, 0, page.data());
        const int64_t lo = 0, hi = 1;
        float m = -INFINITY, l = 0;
        const uint8_t* pages[] = {page.data()};
        k.attend(type, pages, 1, 0, {q.data(), &lo, &hi, &m, &l, o.data(), 1, hd});
        CHECK(!std::isfinite(o[7]));
      }
  });
}

void test_selection() {
  size_t count = 0;
  const kernels::IsaInfo* isas = kernels::isa_list(&count);
  CHECK(count == 7);
  const kernels::Kernels* best = nullptr;
  for (size_t i = 0; i < count; ++i) {
    CHECK(isas[i].compiled == (isas[i].kernels != nullptr));
    if (isas[i].supported) {
      CHECK(&kernels::select(isas[i].name) == isas[i].kernels);
      best = isas[i].kernels;
    } else {
      CHECK_THROWS(UnsupportedIsa, kernels::select(isas[i].name));
    }
  }
  unsetenv("HOTSET_ISA");
  CHECK(&kernels::select() == best);
  setenv("HOTSET_ISA", "scalar", 1);
  CHECK(&kernels::select() == &kernels::select("scalar"));
  setenv("HOTSET_ISA", "sse9", 1);
  CHECK_THROWS(UnsupportedIsa, kernels::select());
  unsetenv("HOTSET_ISA");
  try {
    kernels::select("sse9");
  } catch (const UnsupportedIsa& e) {
    CHECK(std::string(e.what()).find("scalar") != std::string::npos);
  }
}

}  // namespace

int main() {
  test_selection();
  test_empty();
  test_non_finite();
  test_non_finite_value();
  test_random_cases();
  return check::report();
}
