#include "base/cpu.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace hotset {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

#if defined(__x86_64__)
// Register sets that the operating system saves (XCR0); bits as in Intel SDM vol. 1, 13.3.
uint64_t enabled_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

CpuFeatures detect() {
  CpuFeatures f;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const auto bit = [](uint32_t word, int i) { return (word >> i & 1) != 0; };
  f.crc32c = bit(c, 20);
  const uint64_t state = bit(c, 27) ? enabled_state() : 0;
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  f.fma = ymm && bit(c, 12);
  f.f16c = ymm && bit(c, 29);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  const uint32_t subleaves = a;
  f.avx2 = ymm && bit(b, 5);
  f.avx512f = zmm && bit(b, 16);
  f.avx512dq = zmm && bit(b, 17);
  f.avx512bw = zmm && bit(b, 30);
  f.avx512vl = zmm && bit(b, 31);
  f.avx512vnni = zmm && bit(c, 11);
  if (subleaves < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return f;
  f.avx_vnni = ymm && bit(a, 4);
  f.avx512bf16 = zmm && bit(a, 5);
  return f;
}
#elif defined(__aarch64__)
CpuFeatures detect() {  // bits of Linux' asm/hwcap.h
  CpuFeatures f;
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  f.neon = caps >> 1 & 1;
  f.crc32c = caps >> 7 & 1;
  f.dotprod = caps >> 20 & 1;
  f.sve = caps >> 22 & 1;
  f.i8mm = caps2 >> 13 & 1;
  return f;
}
#else
CpuFeatures detect() { return {}; }
#endif

// CPUs in a list of the kernel's, "0-3,8"; 0 if there is none.
size_t count_cpus(const std::string& list) {
  std::istringstream ranges(list);
  size_t count = 0;
  for (std::string range; std::getline(ranges, range, ',');) {
    const size_t dash = range.find('-');
    const int first = std::atoi(range.c_str());
    const int last = dash == std::string::npos ? first : std::atoi(range.c_str() + dash + 1);
    if (last >= first) count += static_cast<size_t>(last - first) + 1;
  }
  return count;
}

struct Cache {
  size_t bytes = 0, cpus = 0;  // 0 if unknown; that share it
};
Cache find_cache(int level, const std::string& cpu0) {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(cpu0 + "/cache", none)) {
    const std::string path = entry.path().string();
    if (first_line(path + "/level") != std::to_string(level)) continue;
    if (first_line(path + "/type") == "Instruction") continue;
    const std::string size = first_line(path + "/size");  // "48K", "32M"
    if (size.empty()) return {};
    const int shift = size.back() == 'K' ? 10 : size.back() == 'M' ? 20 : 0;
    return {std::strtoull(size.c_str(), nullptr, 10) << shift,
            count_cpus(first_line(path + "/shared_cpu_list"))};
  }
  return {};
}

// Lowest-numbered hardware thread of the core: the thread itself where the kernel does not say.
int core_leader(int cpu) {
  const std::string list =
      first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
  return list.empty() ? cpu : std::atoi(list.c_str());
}

std::vector<int> affinity_cpus() {
  // The kernel refuses a mask smaller than its own, so grow until it fits.
  for (int limit = 1024; limit <= 1 << 20; limit *= 2) {
    cpu_set_t* set = CPU_ALLOC(limit);
    const size_t bytes = CPU_ALLOC_SIZE(limit);
    std::vector<int> cpus;
    const bool fits = sched_getaffinity(0, bytes, set) == 0;
    for (int i = 0; fits && i < limit; ++i)
      if (CPU_ISSET_S(i, bytes, set)) cpus.push_back(i);
    CPU_FREE(set);
    if (fits) return cpus;
  }
  return {0};
}

// Quota in CPUs set at exactly this folder; 0 = none.
double quota_at(const std::string& folder, bool v2) {
  double quota = 0, period = 0;
  if (v2) {
    std::istringstream(first_line(folder + "/cpu.max")) >> quota >> period;  // "max 100000": quota stays 0
  } else {
    std::istringstream(first_line(folder + "/cpu.cfs_quota_us")) >> quota;  // -1 = no limit
    std::istringstream(first_line(folder + "/cpu.cfs_period_us")) >> period;
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

// Every ancestor limits too. Inside a container `path` may not be visible, but the mount's root then is the
// container's own group.
double least_quota(const std::string& mount, std::string path, bool v2) {
  double least = 0;
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    const double quota = quota_at(mount + path, v2);
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
    if (path.empty()) return least;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

bool lists_cpu(const std::string& controllers) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');)
    if (name == "cpu") return true;
  return false;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

bool waits_for_few_lines() {
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d) || b != signature_AMD_ebx) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  const uint32_t family = (a >> 8 & 0xf) == 0xf ? 0xf + (a >> 20 & 0xff) : a >> 8 & 0xf;
  return family == 0x19;
#else
  return false;
#endif
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (colon != std::string::npos && line.rfind("model name", 0) == 0) return line.substr(colon + 2);
  }
  // ARM64 kernels print no name there; boards carry one in the device tree.
  std::string board = first_line("/sys/firmware/devicetree/base/model");
  while (!board.empty() && board.back() == '\0') board.pop_back();
  return board.empty() ? "unknown" : board;
}

double cgroup_cpu_quota(const std::string& membership, const std::string& mount) {
  std::ifstream file(membership);
  double least = 0;
  for (std::string line; std::getline(file, line);) {  // "id:controllers:path"; version 2 has no controllers
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1),
                      path = line.substr(second + 1);
    const bool v2 = controllers.empty();
    if (!v2 && !lists_cpu(controllers)) continue;
    const double quota =
        v2 ? least_quota(mount, path, true) : least_quota(mount + "/" + controllers, path, false);
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
  }
  return least;
}

std::vector<int> allowed_cpus() {
  std::vector<int> cpus = affinity_cpus();
  std::stable_partition(cpus.begin(), cpus.end(), [](int cpu) { return core_leader(cpu) == cpu; });
  // Rounded up, as other runtimes do: a last part-time thread is throttled but still adds its part.
  const double quota = cgroup_cpu_quota();
  if (quota > 0) cpus.resize(std::min(cpus.size(), static_cast<size_t>(std::ceil(quota))));
  return cpus;
}

size_t cache_bytes(int level) { return find_cache(level, "/sys/devices/system/cpu/cpu0").bytes; }

size_t core_cache_bytes(int level, const std::string& cpu0) {
  const Cache cache = find_cache(level, cpu0);
  // One thread runs on a core, so hardware threads of one core share nothing.
  const size_t threads = count_cpus(first_line(cpu0 + "/topology/thread_siblings_list"));
  return cache.bytes / std::max<size_t>(1, cache.cpus / std::max<size_t>(1, threads));
}

}  // namespace hotset
