#include "base/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hotset {
namespace {

constexpr size_t kStep = 256;  // bytes per round of four wide registers
constexpr size_t kAhead =
    1024;  // bytes to prefetch ahead: hides a DRAM access (~100 ns) at 10 GB/s per thread
constexpr size_t kCacheLine = 64;

// Each returns a value that depends on all of [p, p + n), n a multiple of kStep, so that no read can be left
// out.
using ReadAll = uint64_t (*)(const uint8_t* p, size_t n);

inline void prefetch(const uint8_t* p) {
  for (size_t i = 0; i < kStep; i += kCacheLine) __builtin_prefetch(p + kAhead + i);
}

uint64_t read_words(const uint8_t* p, size_t n) {
  uint64_t lane[kStep / 8] = {};
  for (size_t i = 0; i < n; i += kStep) {
    uint64_t words[kStep / 8];
    prefetch(p + i);
    memcpy(words, p + i, kStep);
    for (size_t j = 0; j < kStep / 8; ++j) lane[j] += words[j];
  }
  uint64_t sum = 0;
  for (uint64_t v : lane) sum += v;
  return sum;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t read_avx2(const uint8_t* p, size_t n) {
  __m256i lane[4] = {};
  for (size_t i = 0; i < n; i += kStep / 2) {
    if (i % kStep == 0) prefetch(p + i);
    for (size_t j = 0; j < 4; ++j)
      lane[j] = _mm256_add_epi64(lane[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i) + j));
  }
  const __m256i sum =
      _mm256_add_epi64(_mm256_add_epi64(lane[0], lane[1]), _mm256_add_epi64(lane[2], lane[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(sum, 0) + _mm256_extract_epi64(sum, 1) +
                               _mm256_extract_epi64(sum, 2) + _mm256_extract_epi64(sum, 3));
}

__attribute__((target("avx512f"))) uint64_t read_avx512(const uint8_t* p, size_t n) {
  __m512i lane[4] = {};
  for (size_t i = 0; i < n; i += kStep) {
    prefetch(p + i);
    for (size_t j = 0; j < 4; ++j)
      lane[j] = _mm512_add_epi64(lane[j], _mm512_load_si512(reinterpret_cast<const __m512i*>(p + i) + j));
  }
  // Stored and summed here: GCC 12's _mm512_reduce_add_epi64 warns of its own uninitialized register.
  alignas(64) uint64_t sum[8];
  _mm512_store_si512(
      sum, _mm512_add_epi64(_mm512_add_epi64(lane[0], lane[1]), _mm512_add_epi64(lane[2], lane[3])));
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}
#endif

ReadAll widest() {
#if defined(__x86_64__)
  if (cpu_features().avx512f) return read_avx512;
  if (cpu_features().avx2) return read_avx2;
#endif
  return read_words;
}

}  // namespace

double memory_bandwidth(size_t threads, size_t bytes, double seconds) {
  using Clock = std::chrono::steady_clock;
  const size_t part = threads == 0 ? 0 : bytes / threads / kStep * kStep;
  if (part == 0)
    throw InvalidArgument("bandwidth of " + std::to_string(bytes) + " bytes with " + std::to_string(threads) +
                          " threads: each thread needs at least " + std::to_string(kStep) + " bytes");
  ThreadPool pool(threads);
  const Buffer buffer(part * threads);
  pool.parallel_for(threads, 1, [&](size_t i, size_t, size_t) { memset(buffer.data() + i * part, 1, part); });

  std::vector<uint64_t> sums(threads);
  const ReadAll read = widest();
  const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
  double best = 0;
  for (int pass = 0; pass < 2 || Clock::now() < deadline; ++pass) {
    const auto start = Clock::now();
    pool.parallel_for(threads, 1,
                      [&](size_t i, size_t, size_t) { sums[i] += read(buffer.data() + i * part, part); });
    const double rate =
        static_cast<double>(part * threads) / std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, rate);
  }
  if (sums[0] == 0) throw Error("memory read back as zeros");  // keeps the reads alive, and cannot happen
  return best;
}

}  // namespace hotset
