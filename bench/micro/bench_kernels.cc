// Rates of the kernels: GB/s of packed weights (decode is bound by memory) and GMAC/s (prefill by
// arithmetic).
//
//   bench_kernels [--isa NAME] [--kernel SUBSTRING] [--seconds S] [--dram-mib M]
//
// "cache" repeats one matrix of 512 KiB, "dram" walks through M MiB (default 1024) once per pass, one thread.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/memory.h"
#include "kernels/kernels.h"

namespace {

using namespace hotset;
using kernels::Kernels;
using quant::Format;

struct Options {
  std::string isa, kernel;
  double seconds = 0.2;
  size_t dram_mib = 1024;
};

constexpr Format kFormats[] = {Format::q4_0, Format::q4_1, Format::q8_0,
                               Format::f16,  Format::bf16, Format::f32};
constexpr size_t kTokens[] = {1, 2, 3, 4, 8, 16};

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Best seconds per call over at least `seconds` of calls: other load only ever adds time.
template <class Call>
double best_time_s(double seconds, Call&& call) {
  call();
  double best = 1e30;
  for (const double end = now_s() + seconds; now_s() < end;) {
    const double start = now_s();
    call();
    if (const double t = now_s() - start; t < best) best = t;
  }
  return best;
}

std::vector<float> random_floats(size_t n, float scale) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(n);
  for (float& x : out) x = normal(rng);
  return out;
}

// Bytes that are finite numbers in every format: no kernel is slower or faster for other values.
void fill_weights(uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(0x20 + (i * 7 & 15));
}

struct Tile {
  std::vector<int8_t> q;
  std::vector<float> d;
  std::vector<int32_t> s;
  kernels::QTile view;

  Tile(const Kernels& k, size_t n, size_t cols) : q(n * cols), d(n * cols / 32), s(n * cols / 32) {
    view = {q.data(), d.data(), s.data(), n};
    const std::vector<float> x = random_floats(cols, 1.0f);
    for (size_t t = 0; t < n; ++t) k.quantize(x.data(), cols, view, t);
  }
};

Kernels::MatmulQ quantized_kernel(const Kernels& k, Format f) {
  return f == Format::q4_0 ? k.matmul_q4_0 : f == Format::q4_1 ? k.matmul_q4_1 : k.matmul_q8_0;
}
Kernels::MatmulF float_kernel(const Kernels& k, Format f) {
  return f == Format::f16 ? k.matmul_f16 : f == Format::bf16 ? k.matmul_bf16 : k.matmul_f32;
}

void bench_matmul(const Options& options, const Kernels& k, Format f, const char* where, size_t weight_bytes,
                  size_t cols, const Buffer& weights) {
  const std::string name = "matmul_" + std::string(quant::name(f));
  if (name.find(options.kernel) == std::string::npos) return;
  const size_t col_blocks = quant::col_blocks(cols);
  const size_t row_blocks = weight_bytes / quant::row_block_bytes(f, cols),
               rows = row_blocks * quant::kRowBlock;
  const size_t bytes = row_blocks * quant::row_block_bytes(f, cols);
  for (const size_t n : kTokens) {
    std::vector<float> out(rows * n);
    const Tile tile(k, n, cols);
    const std::vector<float> x = random_floats(n * cols, 1.0f);
    const auto ldo = static_cast<ptrdiff_t>(rows), ldx = static_cast<ptrdiff_t>(cols);
    const double s = best_time_s(options.seconds, [&] {
      if (quant::is_quantized(f)) {
        quantized_kernel(k, f)(weights.data(), row_blocks, col_blocks, tile.view, out.data(), ldo);
      } else {
        float_kernel(k, f)(weights.data(), row_blocks, col_blocks, x.data(), ldx, n, out.data(), ldo);
      }
    });
    const double macs = static_cast<double>(rows * cols * n);
    std::printf("%-12s %-12s %-5s n=%-2zu %7.1f GB/s %7.1f GMAC/s\n", k.isa, name.c_str(), where, n,
                static_cast<double>(bytes) / s * 1e-9, macs / s * 1e-9);
  }
}

// n queries (heads of a group) over keys and values of `total_bytes`, side by side in memory.
void bench_attend(const Options& options, const Kernels& k, kernels::KvType type, const char* where,
                  size_t total_bytes) {
  const char* name = type == kernels::KvType::f16 ? "attend_f16" : "attend_int8";
  if (std::string(name).find(options.kernel) == std::string::npos) return;
  constexpr size_t hd = 128;
  const size_t page_bytes = kernels::kv_page_bytes(type, hd), pages = total_bytes / page_bytes;
  const std::vector<float> kv = random_floats(hd, 1.0f);
  Buffer cache(page_bytes * pages);
  std::vector<const uint8_t*> table;
  for (size_t slot = 0; slot < kernels::kPage; ++slot)
    k.kv_store(type, kv.data(), kv.data(), hd, slot, cache.data());
  for (size_t p = 0; p < pages; ++p) {
    uint8_t* page = cache.data() + p * page_bytes;
    if (p > 0) std::memcpy(page, cache.data(), page_bytes);
    table.push_back(page);
  }
  for (const size_t n : kTokens) {
    const std::vector<float> q = random_floats(n * hd, 0.1f);
    std::vector<float> o(n * hd), m(n), l(n);
    const std::vector<int64_t> lo(n, 0), hi(n, static_cast<int64_t>(pages * kernels::kPage));
    const kernels::AttendState state{q.data(), lo.data(), hi.data(), m.data(), l.data(), o.data(), n, hd};
    const double s = best_time_s(options.seconds, [&] { k.attend(type, table.data(), pages, 0, state); });
    const double macs = static_cast<double>(2 * n * hd * pages * kernels::kPage);
    std::printf("%-12s %-12s %-5s n=%-2zu %7.1f GB/s %7.1f GMAC/s\n", k.isa, name, where, n,
                static_cast<double>(page_bytes * pages) / s * 1e-9, macs / s * 1e-9);
  }
}

template <class Call>
void bench_elementwise(const Options& options, const Kernels& k, const char* name, size_t n, Call&& call) {
  if (std::string(name).find(options.kernel) == std::string::npos) return;
  const double s = best_time_s(options.seconds, call);
  std::printf("%-12s %-12s %-5s n=%-7zu %6.2f ns/element\n", k.isa, name, "cache", n,
              s * 1e9 / static_cast<double>(n));
}

void bench_vectors(const Options& options, const Kernels& k) {
  constexpr size_t n = 4096;
  const std::vector<float> x = random_floats(n, 1.0f);
  std::vector<float> y = x;
  Tile tile(k, 1, n);
  const auto glu = [&](kernels::Activation f) {
    k.glu(f, 0, kernels::Activation::none, 0, x.data(), n, y.data());
  };
  bench_elementwise(options, k, "quantize", n, [&] { k.quantize(x.data(), n, tile.view, 0); });
  bench_elementwise(options, k, "rms_norm", n, [&] { k.rms_norm(x.data(), x.data(), 1e-5f, n, y.data()); });
  bench_elementwise(options, k, "glu_silu", n, [&] { glu(kernels::Activation::silu); });
  bench_elementwise(options, k, "glu_gelu", n, [&] { glu(kernels::Activation::gelu); });
  bench_elementwise(options, k, "rope", n, [&] { k.rope(x.data(), x.data(), n / 2, y.data()); });
  float max = 0, lse = 0;
  std::vector<float> weights(n), sums(n);
  bench_elementwise(options, k, "logsumexp", n, [&] { k.logsumexp(x.data(), n, &max, &lse); });
  bench_elementwise(options, k, "block_maxima", n, [&] { k.block_maxima(x.data(), n, sums.data()); });
  bench_elementwise(options, k, "softmax_weights", n,
                    [&] { k.softmax_weights(x.data(), n, 8, 1, weights.data(), sums.data()); });
}

// What the int8 dot product of this ISA can do at most: a loop of independent chains on registers.
#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vnni"))) double int8_peak_vnni(double seconds) {
  constexpr int kChains = 16, kLoops = 4096;
  const double s = best_time_s(seconds, [] __attribute__((target("avx512f,avx512vnni"))) {
    __m512i sums[kChains] = {};
    const __m512i a = _mm512_set1_epi8(1);
    for (int i = 0; i < kLoops; ++i)
#pragma GCC unroll 16
      for (int c = 0; c < kChains; ++c) {
        sums[c] = _mm512_dpbusd_epi32(sums[c], a, a);
        asm volatile("" : "+v"(sums[c]));
      }
  });
  return 64.0 * kChains * kLoops / s;
}
#endif

void print_int8_peak(const Options& options, const Kernels& k) {
#if defined(__x86_64__)
  if (std::string(k.isa) == "avx512vnni")
    std::printf("%-12s peak int8 %7.1f GMAC/s\n", k.isa, int8_peak_vnni(options.seconds) * 1e-9);
#endif
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--isa") options.isa = argv[i + 1];
    if (flag == "--kernel") options.kernel = argv[i + 1];
    if (flag == "--seconds") options.seconds = std::atof(argv[i + 1]);
    if (flag == "--dram-mib") options.dram_mib = static_cast<size_t>(std::atoll(argv[i + 1]));
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  constexpr size_t cache_bytes = 512 << 10;
  const Buffer weights(options.dram_mib > 1 ? options.dram_mib << 20 : 1 << 20);
  fill_weights(weights.data(), weights.size());
  size_t count = 0;
  const kernels::IsaInfo* isas = kernels::isa_list(&count);
  for (size_t i = 0; i < count; ++i) {
    if (!isas[i].supported || (!options.isa.empty() && options.isa != isas[i].name)) continue;
    const Kernels& k = *isas[i].kernels;
    print_int8_peak(options, k);
    for (const Format f : kFormats) {
      bench_matmul(options, k, f, "cache", cache_bytes, 4096, weights);
      if (options.dram_mib > 1) bench_matmul(options, k, f, "dram", weights.size(), 4096, weights);
    }
    for (const kernels::KvType type : {kernels::KvType::f16, kernels::KvType::int8}) {
      bench_attend(options, k, type, "cache", cache_bytes);
      if (options.dram_mib > 1) bench_attend(options, k, type, "dram", weights.size());
    }
    bench_vectors(options, k);
  }
}
