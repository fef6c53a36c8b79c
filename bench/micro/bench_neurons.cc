// Rates of the kernels on single neurons, on lists as decode gives them: every layer some neurons, in store
// order, scattered over gigabytes.
//
//   bench_neurons [--isa NAME] [--format q4_0|q8_0] [--hidden N] [--neurons N] [--layers N] [--mib M]
//                 [--threads N] [--grain N] [--rows R,...] [--seconds S] [--json FILE]
//
// "gather" reads the same bytes and computes nothing: what the access pattern allows. All rates are of bytes
// that had to move; shares are of the bandwidth measured by the same threads in the same run. "cache" repeats
// 64 vectors: what the arithmetic allows.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "base/bandwidth.h"
#include "base/memory.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "model/lane_rows.h"
#include "pipeline/down_sums.h"
#include "quant/neuron.h"

namespace {

using namespace hotset;
using kernels::Kernels;
using quant::Format;
using Clock = std::chrono::steady_clock;
using Vectors = std::vector<const uint8_t*>;
using Index = std::vector<uint32_t>;

struct Options {
  std::string isa, json, rows = "1,2,4,8,16,64";
  Format format = Format::q4_0;
  size_t hidden = 4096, neurons = 1400, layers = 32, mib = 2048, threads = 2;
  size_t grain = 64;  // neurons a thread takes at a time
  double seconds = 0.4;
};

constexpr size_t kMostSummed = 8;  // tokens
constexpr size_t kSets = 4;  // lists that take turns, so that no pass finds the last one's in the cache
constexpr size_t kBlockCols = quant::kLaneGroups * quant::kGroup;

struct Lists {
  std::vector<Vectors> layers[kSets];
  std::vector<std::vector<uint32_t>> index[kSets];  // in their layers
};

// Random neurons of every layer in store order; bundles are padded to 512 bytes.
Lists make_lists(const Options& o, const Buffer& memory, size_t stride) {
  const size_t of_layer = memory.size() / stride / o.layers;
  std::mt19937 rng(7);
  std::vector<uint32_t> all(of_layer);
  Lists lists;
  for (size_t set = 0; set < kSets; ++set)
    for (size_t layer = 0; layer < o.layers; ++layer) {
      for (size_t i = 0; i < of_layer; ++i) all[i] = static_cast<uint32_t>(i);
      std::shuffle(all.begin(), all.end(), rng);
      const size_t n = std::min(o.neurons, of_layer);
      std::sort(all.begin(), all.begin() + static_cast<ptrdiff_t>(n));
      Vectors vectors;
      for (size_t i = 0; i < n; ++i) vectors.push_back(memory.data() + (layer * of_layer + all[i]) * stride);
      lists.layers[set].push_back(std::move(vectors));
      lists.index[set].emplace_back(all.begin(), all.begin() + static_cast<ptrdiff_t>(n));
    }
  return lists;
}

double seconds_of(const std::function<void()>& call) {
  const auto start = Clock::now();
  call();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Line {
  std::string name, where;
  size_t threads, rows;
  double bytes_per_s, share, macs_per_s;
};

class Bench {
 public:
  Bench(const Options& o, const Kernels& k)
      : o_(o),
        k_(k),
        vector_(quant::vector_bytes(o.format, o.hidden)),
        stride_((3 * vector_ + 511) / 512 * 512),
        memory_(o.mib << 20),
        lists_((fill(), make_lists(o, memory_, stride_))),
        sums_(k, o.format, o.hidden) {}

  void run(size_t threads, const std::vector<size_t>& rows) {
    bandwidth_ = memory_bandwidth(threads, size_t{1} << 30, 0.5);
    std::printf("%zu threads, memory %.1f GB/s\n", threads, bandwidth_ * 1e-9);
    lines.push_back({"memory", "dram", threads, 1, bandwidth_, 1, 0});
    ThreadPool pool(threads);
    dram("gather", pool, 0, [&](const Vectors& v, const Index&) { gather(v, pool); });
    for (const size_t r : rows) dots(r, pool);
    for (const size_t r : rows)
      if (r <= kMostSummed) sums(r, pool);
    if (threads == 1) cache(rows);
  }
  std::vector<Line> lines;

 private:
  void fill() {
    ThreadPool pool(o_.threads);
    pool.parallel_for(memory_.size(), size_t{1} << 21, [&](size_t begin, size_t end, size_t) {
      std::memset(memory_.data() + begin, 0x21, end - begin);
    });
  }

  void print(const Line& line) {
    std::printf("  %-8s %-5s rows=%-3zu %6.1f GB/s %4.0f %% %8.1f GMAC/s\n", line.name.c_str(),
                line.where.c_str(), line.rows, line.bytes_per_s * 1e-9, line.share * 100,
                line.macs_per_s * 1e-9);
    lines.push_back(line);
  }

  // The median of passes over all layers.
  void dram(const char* name, ThreadPool& pool, size_t rows,
            const std::function<void(const Vectors&, const Index&)>& layer, double share = 1) {
    std::vector<double> times;
    size_t set = 0;
    for (double all = 0; all < o_.seconds || times.size() < 3; all += times.back(), ++set)
      times.push_back(seconds_of([&] {
        for (size_t l = 0; l < o_.layers; ++l)
          layer(lists_.layers[set % kSets][l], lists_.index[set % kSets][l]);
      }));
    std::nth_element(times.begin(), times.begin() + static_cast<ptrdiff_t>(times.size() / 2), times.end());
    const double n = static_cast<double>(lists_.layers[0][0].size() * o_.layers);
    const double rate = n * static_cast<double>(vector_) / times[times.size() / 2];
    const double macs = n * share * static_cast<double>(o_.hidden * rows) / times[times.size() / 2];
    print({name, "dram", pool.size(), rows, rate, rate / bandwidth_, macs});
  }

  void gather(const Vectors& v, ThreadPool& pool) {
    pool.parallel_for(v.size(), o_.grain, [&](size_t begin, size_t end, size_t) {
      uint64_t lanes[8] = {};
      for (size_t i = begin; i < end; ++i)
        for (size_t at = 0; at + 64 <= vector_; at += 64) {
          __builtin_prefetch(v[std::min(i + 3, v.size() - 1)] + at);
          uint64_t words[8];
          std::memcpy(words, v[i] + at, 64);
          for (size_t j = 0; j < 8; ++j) lanes[j] += words[j];
        }
      for (const uint64_t lane : lanes) sink_ += lane;
    });
  }

  model::LaneRows tile(size_t rows) const {
    model::LaneRows lanes(rows, o_.hidden);
    const std::vector<float> x(o_.hidden, 0.3f);
    for (size_t t = 0; t < rows; ++t) k_.quantize_lanes(x.data(), lanes.row(t));
    return lanes;
  }
  auto dot_kernel() const { return o_.format == Format::q4_0 ? k_.dot_neurons_q4_0 : k_.dot_neurons_q8_0; }
  void dots(size_t rows, ThreadPool& pool) {
    const model::LaneRows lanes = tile(rows);
    std::vector<float> out(o_.neurons * rows);
    dram("dot", pool, rows, [&](const Vectors& v, const Index&) {
      pool.parallel_for(v.size(), o_.grain, [&](size_t begin, size_t end, size_t) {
        dot_kernel()(v.data() + begin, end - begin, lanes.row(0), rows, out.data() + begin * rows);
      });
    });
  }

  // One token adds all neurons; of several each adds a random half.
  void sums(size_t rows, ThreadPool& pool) {
    std::vector<float> y(rows * o_.hidden), products(rows * o_.neurons);
    std::mt19937 rng(11);
    for (float& p : products) p = rows == 1 || rng() % 2 ? 0.01f : 0.0f;
    const auto sum = [&](const Vectors& v, const Index& index) {
      sums_.begin(rows);
      for (size_t i = 0; i < v.size(); ++i) sums_.add(index[i], v[i], products.data() + i, o_.neurons);
      sums_.run(pool, {y.data(), o_.hidden});
    };
    dram("sum", pool, rows, sum, rows == 1 ? 1 : 0.5);
  }

  void cached(const char* name, size_t rows, const std::function<void(const uint8_t* const*, size_t)>& call) {
    const size_t n = std::min<size_t>(64, lists_.layers[0][0].size());
    double best = 1e30;
    for (double all = 0; all < o_.seconds / 4;) {
      const double t = seconds_of([&] { call(lists_.layers[0][0].data(), n); });
      all += t;
      best = std::min(best, t);
    }
    const double bytes = static_cast<double>(n * vector_) / best;
    print({name, "cache", 1, rows, bytes, bytes / bandwidth_,
           static_cast<double>(n * o_.hidden * rows) / best});
  }

  void cache(const std::vector<size_t>& rows) {
    std::vector<float> out(64 * 512), y(o_.hidden);
    for (const size_t r : rows) {
      const model::LaneRows lanes = tile(r);
      cached("dot", r,
             [&](const uint8_t* const* v, size_t n) { dot_kernel()(v, n, lanes.row(0), r, out.data()); });
    }
    const std::vector<float> a(64, 0.01f);
    const auto add = o_.format == Format::q4_0 ? k_.add_neurons_q4_0 : k_.add_neurons_q8_0;
    cached("sum", 1, [&](const uint8_t* const* v, size_t n) {
      add({v, a.data(), n}, o_.hidden, 0, (o_.hidden + kBlockCols - 1) / kBlockCols, y.data());
    });
  }

  Options o_;
  const Kernels& k_;
  size_t vector_, stride_;
  Buffer memory_;
  Lists lists_;
  double bandwidth_ = 0;
  pipeline::DownSums sums_;
  std::atomic<uint64_t> sink_ = 0;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    const auto number = [&] { return static_cast<size_t>(std::atoll(value.c_str())); };
    if (flag == "--isa") o.isa = value;
    if (flag == "--format") o.format = value == "q8_0" ? Format::q8_0 : Format::q4_0;
    if (flag == "--hidden") o.hidden = number();
    if (flag == "--neurons") o.neurons = number();
    if (flag == "--layers") o.layers = number();
    if (flag == "--mib") o.mib = number();
    if (flag == "--threads") o.threads = number();
    if (flag == "--rows") o.rows = value;
    if (flag == "--seconds") o.seconds = std::atof(value.c_str());
    if (flag == "--grain") o.grain = number();
    if (flag == "--json") o.json = value;
  }
  return o;
}

std::vector<size_t> numbers(const std::string& list) {
  std::vector<size_t> out;
  std::stringstream in(list);
  for (std::string item; std::getline(in, item, ',');)
    out.push_back(static_cast<size_t>(std::atoll(item.c_str())));
  return out;
}

void write_json(const Options& o, const std::string& isa, const std::vector<Line>& lines) {
  std::ofstream out(o.json);
  out << "{\"isa\": \"" << isa << "\", \"format\": \"" << quant::name(o.format)
      << "\", \"hidden\": " << o.hidden << ", \"neurons\": " << o.neurons << ", \"layers\": " << o.layers
      << ", \"mib\": " << o.mib << ", \"lines\": [";
  for (size_t i = 0; i < lines.size(); ++i) {
    const Line& l = lines[i];
    out << (i ? ",\n  " : "\n  ") << "{\"kernel\": \"" << l.name << "\", \"where\": \"" << l.where
        << "\", \"threads\": " << l.threads << ", \"rows\": " << l.rows
        << ", \"bytes_per_s\": " << l.bytes_per_s << ", \"macs_per_s\": " << l.macs_per_s << "}";
  }
  out << "\n]}\n";
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = parse(argc, argv);
  const Kernels& k = kernels::select(o.isa.c_str());
  std::printf("%s, %s, hidden %zu, %zu neurons in each of %zu layers, %zu MiB\n", k.isa,
              std::string(quant::name(o.format)).c_str(), o.hidden, o.neurons, o.layers, o.mib);
  Bench bench(o, k);
  for (size_t threads = 1; threads <= o.threads; ++threads) bench.run(threads, numbers(o.rows));
  if (!o.json.empty()) write_json(o, k.isa, bench.lines);
}
