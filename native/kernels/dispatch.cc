#include <cstdlib>
#include <string>
#include <string_view>

#include "base/cpu.h"
#include "base/error.h"
#include "kernels/tables.h"

namespace hotset::kernels {

extern const bool kStreamToL2 = waits_for_few_lines();  // generic/prefetch.h

namespace {

// The CMake list of ISA folders decides what is compiled; each defines its own macro.
#ifdef HOTSET_HAVE_AVX2
constexpr const Kernels* kTableAvx2 = &kAvx2;
#else
constexpr const Kernels* kTableAvx2 = nullptr;
#endif
#ifdef HOTSET_HAVE_AVX512
constexpr const Kernels* kTableAvx512 = &kAvx512;
#else
constexpr const Kernels* kTableAvx512 = nullptr;
#endif
#ifdef HOTSET_HAVE_AVX512VNNI
constexpr const Kernels* kTableAvx512Vnni = &kAvx512Vnni;
#else
constexpr const Kernels* kTableAvx512Vnni = nullptr;
#endif
#ifdef HOTSET_HAVE_NEON
constexpr const Kernels* kTableNeon = &kNeon;
#else
constexpr const Kernels* kTableNeon = nullptr;
#endif
#ifdef HOTSET_HAVE_NEON_DOTPROD
constexpr const Kernels* kTableNeonDotprod = &kNeonDotprod;
#else
constexpr const Kernels* kTableNeonDotprod = nullptr;
#endif
#ifdef HOTSET_HAVE_NEON_I8MM
constexpr const Kernels* kTableNeonI8mm = &kNeonI8mm;
#else
constexpr const Kernels* kTableNeonI8mm = nullptr;
#endif

struct IsaList {
  IsaInfo items[7];

  IsaList() : items{} {
    const CpuFeatures& cpu = cpu_features();
    const bool avx2 = cpu.avx2 && cpu.fma && cpu.f16c;
    const bool avx512 = avx2 && cpu.avx512f && cpu.avx512bw && cpu.avx512vl && cpu.avx512dq;
    const bool dotprod = cpu.neon && cpu.dotprod;
    size_t i = 0;
    const auto put = [&](const char* name, const char* description, const Kernels* table, bool supported) {
      items[i++] = {name, description, table != nullptr, table != nullptr && supported, table};
    };
    put("scalar", "portable C++, any CPU", &kScalar, true);
    put("avx2", "x86-64 with AVX2, FMA, F16C (Haswell, Zen and later)", kTableAvx2, avx2);
    put("avx512", "x86-64 with AVX-512 F, BW, VL, DQ (Skylake-X and later)", kTableAvx512, avx512);
    put("avx512vnni", "AVX-512 with VNNI (Ice Lake, Zen 4 and later)", kTableAvx512Vnni,
        avx512 && cpu.avx512vnni);
    put("neon", "AArch64, any CPU", kTableNeon, cpu.neon);
    put("neon_dotprod", "AArch64 with dot product (Cortex-A76, Apple M1 and later)", kTableNeonDotprod,
        dotprod);
    put("neon_i8mm", "AArch64 with int8 matrix multiply (Cortex-X2, Neoverse V1 and later)", kTableNeonI8mm,
        dotprod && cpu.i8mm);
  }
};

const IsaList& list() {
  static const IsaList isas;
  return isas;
}

std::string supported_names() {
  std::string names;
  for (const IsaInfo& isa : list().items) {
    if (isa.supported) names += (names.empty() ? "" : ", ") + std::string(isa.name);
  }
  return names;
}

}  // namespace

const IsaInfo* isa_list(size_t* count) {
  *count = std::size(list().items);
  return list().items;
}

const Kernels& select(const char* name) {
  if (name == nullptr || *name == '\0') name = std::getenv("HOTSET_ISA");
  const bool named = name != nullptr && *name != '\0';
  const IsaInfo* best = nullptr;
  bool known = false;
  for (const IsaInfo& isa : list().items) {
    const bool match = !named || std::string_view(isa.name) == name;
    known |= match;
    if (match && isa.supported) best = &isa;
  }
  if (best) return *best->kernels;
  throw UnsupportedIsa("ISA '" + std::string(name) + "' is " +
                       (known ? "not supported by this CPU or build" : "unknown") + "; choose one of " +
                       supported_names());
}

}  // namespace hotset::kernels
