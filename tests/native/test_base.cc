// Memory, CPU facts and CRC-32C against definitions and fake cgroup trees.
#include <sched.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "base/bandwidth.h"
#include "base/cpu.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "base/memory.h"
#include "check.h"

using namespace hotset;
namespace fs = std::filesystem;

namespace {

// Straight from the definition: one bit at a time.
uint32_t crc_by_bits(const std::vector<uint8_t>& data) {
  uint32_t crc = 0xffffffff;
  for (uint8_t byte : data) {
    crc ^= byte;
    for (int i = 0; i < 8; ++i) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);
  }
  return ~crc;
}

void test_crc_vectors() {  // RFC 3720, B.4
  const std::vector<uint8_t> zeros(32, 0), ones(32, 0xff);
  std::vector<uint8_t> rising(32);
  for (size_t i = 0; i < 32; ++i) rising[i] = static_cast<uint8_t>(i);
  CHECK(crc32c(zeros.data(), 32) == 0x8a9136aa);
  CHECK(crc32c(ones.data(), 32) == 0x62a8ab43);
  CHECK(crc32c(rising.data(), 32) == 0x46dd794e);
  CHECK(crc32c("123456789", 9) == 0xe3069283);
  CHECK(crc32c(nullptr, 0) == 0);
}

void test_crc_lengths() {  // around every change of the inner loop, from every alignment, in two pieces
  std::mt19937 rng(1);
  std::vector<uint8_t> data(40000);
  for (uint8_t& b : data) b = static_cast<uint8_t>(rng());
  for (size_t n : {0, 1, 7, 8, 9, 767, 768, 769, 1536, 12287, 12288, 12289, 13056, 24577, 39990}) {
    for (size_t offset : {0, 1, 3, 8}) {
      const std::vector<uint8_t> part(data.begin() + offset, data.begin() + offset + n);
      const uint32_t want = crc_by_bits(part);
      CHECK(crc32c(&data[offset], n) == want);
      const size_t cut = n / 3;
      CHECK(crc32c(part.data() + cut, n - cut, crc32c(part.data(), cut)) == want);
    }
  }
}

void test_buffer() {
  constexpr size_t kHuge = size_t{2} << 20;
  for (size_t bytes : {size_t{1}, size_t{4096}, kHuge - 1, kHuge, 3 * kHuge + 5}) {
    Buffer b(bytes);
    CHECK(b.size() == bytes);
    CHECK(reinterpret_cast<uintptr_t>(b.data()) % (bytes >= kHuge ? kHuge : 4096) == 0);
    CHECK(std::all_of(b.data(), b.data() + bytes, [](uint8_t v) { return v == 0; }));
    b.data()[bytes - 1] = 7;
    Buffer moved(std::move(b));
    CHECK(b.data() == nullptr && b.size() == 0);
    CHECK(moved.size() == bytes && moved.data()[bytes - 1] == 7);
    Buffer assigned(10);
    assigned = std::move(moved);
    CHECK(assigned.size() == bytes);
  }
  CHECK(Buffer(0).data() == nullptr);
  CHECK_THROWS(OutOfMemory, Buffer(size_t{1} << 60));
  CHECK_THROWS(OutOfMemory, Buffer(SIZE_MAX));
}

void test_mapped_file(const fs::path& dir) {
  std::ofstream(dir / "text") << "hot set";
  std::ofstream(dir / "empty").close();
  MappedFile file((dir / "text").c_str());
  CHECK(std::string(file.bytes().begin(), file.bytes().end()) == "hot set");
  MappedFile moved;
  moved = std::move(file);
  CHECK(moved.bytes().size() == 7 && file.bytes().empty());
  CHECK(MappedFile((dir / "empty").c_str()).bytes().empty());
  CHECK_THROWS(IoError, MappedFile((dir / "missing").c_str()));
  CHECK_THROWS(IoError, MappedFile(dir.c_str()));
}

double quota(const fs::path& root, const std::string& membership) {
  std::ofstream(root / "membership") << membership;
  return cgroup_cpu_quota((root / "membership").string(), root.string());
}

void test_cgroup_v2(const fs::path& root) {
  fs::create_directories(root / "a/b");
  CHECK(quota(root, "0::/a/b\n") == 0);
  std::ofstream(root / "a/b/cpu.max") << "max 100000\n";
  CHECK(quota(root, "0::/a/b\n") == 0);
  std::ofstream(root / "a/cpu.max") << "150000 100000\n";  // an ancestor limits too
  CHECK(quota(root, "0::/a/b\n") == 1.5);
  std::ofstream(root / "a/b/cpu.max") << "50000 100000\n";
  CHECK(quota(root, "0::/a/b\n") == 0.5);
  CHECK(quota(root, "0::/\n") == 0);
  CHECK(quota(root, "garbage\n\n1:x\n") == 0);
  CHECK(cgroup_cpu_quota((root / "missing").string(), root.string()) == 0);
}

void test_cgroup_v1(const fs::path& root) {
  fs::create_directories(root / "cpu,cpuacct/job");
  const auto set = [&](const char* folder, const char* microseconds) {
    std::ofstream(root / "cpu,cpuacct" / folder / "cpu.cfs_quota_us") << microseconds;
    std::ofstream(root / "cpu,cpuacct" / folder / "cpu.cfs_period_us") << "50000";
  };
  set("job", "-1");
  CHECK(quota(root, "4:cpu,cpuacct:/job\n3:cpuset:/\n") == 0);
  set("job", "100000");
  CHECK(quota(root, "4:cpu,cpuacct:/job\n3:cpuset:/\n") == 2);
  set(".", "25000");  // what a container sees: its own group is the mount's root, its path is the host's
  CHECK(quota(root, "4:cpu,cpuacct:/docker/0123\n") == 0.5);
}

struct FakeCache {
  const char *level, *type, *size, *shared;
};

size_t core_cache(const fs::path& root, const char* siblings, const std::vector<FakeCache>& caches) {
  fs::remove_all(root);
  fs::create_directories(root / "topology");
  std::ofstream(root / "topology/thread_siblings_list") << siblings;
  for (size_t i = 0; i < caches.size(); ++i) {
    const fs::path folder = root / "cache" / ("index" + std::to_string(i));
    fs::create_directories(folder);
    std::ofstream(folder / "level") << caches[i].level;
    std::ofstream(folder / "type") << caches[i].type;
    std::ofstream(folder / "size") << caches[i].size;
    std::ofstream(folder / "shared_cpu_list") << caches[i].shared;
  }
  return core_cache_bytes(2, root.string());
}

void test_core_cache(const fs::path& root) {
  const FakeCache l1d{"1", "Data", "32K", "0"}, l1i{"1", "Instruction", "32K", "0"};
  const FakeCache l3{"3", "Unified", "32M", "0-15"};
  CHECK(core_cache(root, "0", {l1d, l1i, {"2", "Unified", "1024K", "0"}, l3}) == 1 << 20);  // Zen 4
  CHECK(core_cache(root, "0,8", {l1d, {"2", "Unified", "256K", "0,8"}, l3}) == 256 << 10);  // Haswell, SMT
  CHECK(core_cache(root, "0-1", {l1d, {"2", "Unified", "2M", "0-1"}}) == 2 << 20);          // Sapphire Rapids
  CHECK(core_cache(root, "0", {l1d, {"2", "Unified", "1M", "0-3"}}) == 256 << 10);          // Raspberry Pi 4
  CHECK(core_cache(root, "4", {l1d, {"2", "Unified", "4096K", "4-7"}, l3}) == 1 << 20);     // Gracemont
  CHECK(core_cache(root, "", {{"2", "Unified", "512K", ""}}) == 512 << 10);  // who shares it is unknown
  CHECK(core_cache(root, "0", {l1d, l3}) == 0);
  CHECK(core_cache(root, "0", {{"2", "Unified", "", "0"}}) == 0);
  CHECK(core_cache_bytes(2, (root / "missing").string()) == 0);
}

void test_cpu() {
  const std::vector<int> cpus = allowed_cpus();
  CHECK(!cpus.empty());
  cpu_set_t set;
  CHECK(sched_getaffinity(0, sizeof(set), &set) == 0);
  for (int cpu : cpus) CHECK(CPU_ISSET(cpu, &set));
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpus.back(), &one);
  CHECK(sched_setaffinity(0, sizeof(one), &one) == 0);
  CHECK(allowed_cpus() == std::vector<int>{cpus.back()});
  CHECK(sched_setaffinity(0, sizeof(set), &set) == 0);
  CHECK(!cpu_model().empty());
  CHECK(cache_bytes(1) <= cache_bytes(2) || cache_bytes(2) == 0);
  CHECK(cache_bytes(9) == 0);
  CHECK(core_cache_bytes(2) <= cache_bytes(2));
#if defined(__x86_64__)
  CHECK(cpu_features().avx2 == static_cast<bool>(__builtin_cpu_supports("avx2")));
  CHECK(cpu_features().fma == static_cast<bool>(__builtin_cpu_supports("fma")));
  CHECK(cpu_features().avx512vl == static_cast<bool>(__builtin_cpu_supports("avx512vl")));
  CHECK(cpu_features().avx512vnni == static_cast<bool>(__builtin_cpu_supports("avx512vnni")));
#endif
}

void test_bandwidth() {
  const double rate = memory_bandwidth(1, 8 << 20, 0.01);
  CHECK(rate > 1e8 && rate < 1e13);  // slower than any disk, faster than any memory: the arithmetic is wrong
  CHECK_THROWS(InvalidArgument, memory_bandwidth(0, 1 << 20, 0.01));
  CHECK_THROWS(InvalidArgument, memory_bandwidth(4, 100, 0.01));
}

}  // namespace

int main() {
  char name[] = "/tmp/hotset-base-XXXXXX";
  const fs::path dir = mkdtemp(name);
  test_crc_vectors();
  test_crc_lengths();
  test_buffer();
  test_mapped_file(dir);
  test_cgroup_v2(dir);
  test_cgroup_v1(dir);
  test_core_cache(dir / "cpu0");
  test_cpu();
  test_bandwidth();
  fs::remove_all(dir);
  return check::report();
}
