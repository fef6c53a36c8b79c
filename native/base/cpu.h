// What this CPU can do. Reads cpuid/getauxval once.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace hotset {

struct CpuFeatures {
  bool avx2 = false, fma = false, f16c = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false, avx512vnni = false, avx512bf16 = false;
  bool avx_vnni = false;
  bool neon = false, dotprod = false, i8mm = false, sve = false;
};
const CpuFeatures& cpu_features();          // includes the operating system's support for the registers (xgetbv)
std::string cpu_model();                    // "AMD EPYC", ...
std::vector<int> allowed_cpus();            // sched_getaffinity, and no more than the cgroup's CPU quota allows
size_t cache_bytes(int level);              // L1d, L2, L3 of cpu 0; 0 if unknown

}  // namespace hotset
