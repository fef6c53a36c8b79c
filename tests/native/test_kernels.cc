// Every kernel on every ISA of this machine, on random shapes and scales with fixed seeds.
#include <cstdlib>

#include "base/error.h"
#include "kernel_cases.h"

namespace {

using namespace hotset;

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
  test_random_cases();
  return check::report();
}
