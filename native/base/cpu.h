// What this CPU can do. Reads cpuid/getauxval once.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace hotset {

struct CpuFeatures {
  bool avx2 = false, fma = false, f16c = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false, avx512vnni = false,
       avx512bf16 = false;
  bool avx_vnni = false;
  bool crc32c = false;  // SSE4.2's or ARM's CRC instruction
  bool neon = false, dotprod = false, i8mm = false, sve = false;
};
const CpuFeatures& cpu_features();  // includes the operating system's support for the registers (xgetbv)
// Whether a core waits for so few lines in L1 (24) that streams are better fetched into L2: Zen 3 and 4
// (docs/decisions/log.md).
bool waits_for_few_lines();
std::string cpu_model();  // "AMD EPYC", ...
// CPUs of sched_getaffinity, one of each core first, and no more of them than the cgroup's CPU quota (rounded
// up).
std::vector<int> allowed_cpus();
// CPUs' worth of time that the cgroups (v1 or v2) of this process grant; 0 = no limit.
double cgroup_cpu_quota(const std::string& membership = "/proc/self/cgroup",
                        const std::string& mount = "/sys/fs/cgroup");
size_t cache_bytes(int level);  // L1d, L2, L3 of cpu 0; 0 if unknown
// What a core has of it where cores share one; `cpu0` is the kernel's folder of that CPU.
size_t core_cache_bytes(int level, const std::string& cpu0 = "/sys/devices/system/cpu/cpu0");

}  // namespace hotset
