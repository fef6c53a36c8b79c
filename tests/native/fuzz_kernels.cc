// Differential fuzzer: one random case after another on all ISAs of this machine, each against the double
// reference and with its work cut in different ways. With libFuzzer (-fsanitize=fuzzer, HOTSET_LIBFUZZER) the
// input is the seed; else: fuzz_kernels [SEED] [ITERATIONS].
#include <cstdlib>

#include "kernel_cases.h"

namespace {

int run_case(uint64_t seed) {
  for (const cases::Case& c : cases::kCases) {
    cases::for_each_isa([&](const cases::Kernels& k) {
      const int before = check::failures;
      c.check(k, cases::Rng(seed));
      if (check::failures != before) {
        std::fprintf(stderr, "%s on %s fails with seed %llu\n", c.name, k.isa,
                     static_cast<unsigned long long>(seed));
      }
    });
  }
  return check::failures;
}

}  // namespace

#ifdef HOTSET_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint64_t seed = 0;
  std::memcpy(&seed, data, size < sizeof seed ? size : sizeof seed);
  if (run_case(seed) != 0) std::abort();
  return 0;
}
#else
int main(int argc, char** argv) {
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const uint64_t iterations = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 100;
  for (uint64_t i = 0; i < iterations && check::failures < 20; ++i) run_case(seed + i);
  return check::report();
}
#endif
