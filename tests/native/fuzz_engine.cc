// Fuzzes what the core reads from files: tensors and bundles of any bytes, at any place, of any shape, for
// any model description. Only hotset's errors may come out, and a step that runs must stay inside its memory
// (build with -DHOTSET_SANITIZE=address,undefined). fuzz_engine [SEED] [ITERATIONS]; ctest runs a few.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/crc32c.h"
#include "base/error.h"
#include "check.h"
#include "model/engine.h"
#include "pipeline/sparse_ffn.h"

using namespace hotset;

namespace {

class Source {
 public:
  explicit Source(uint64_t seed) : rng_(seed) {}
  size_t below(size_t n) { return rng_() % n; }
  bool one_in(size_t n) { return below(n) == 0; }
  int64_t size(std::initializer_list<int64_t> usual) {
    if (one_in(400)) return static_cast<int64_t>(rng_()) >> below(64);  // any number at all
    return usual.begin()[below(usual.size())];
  }
  uint8_t byte() { return static_cast<uint8_t>(rng_()); }

 private:
  std::mt19937_64 rng_;
};

model::ModelDesc random_model(Source& s) {
  model::ModelDesc d;
  d.hidden = s.size({32, 64, 80, 576});
  d.ffn = s.size({16, 64, 100});
  d.vocab = s.size({17, 64});
  d.heads = s.size({1, 2, 4});
  d.kv_heads = s.size({1, 1, 2});
  d.head_dim = s.size({8, 16, 20});
  d.context = s.size({64, 200});
  d.norm = s.one_in(2) ? model::NormKind::rms : model::NormKind::layer;
  d.qk_norm = static_cast<model::QkNorm>(s.below(3));
  d.attention_scale = 0.25f;
  d.parallel = s.one_in(4);
  d.gated = !s.one_in(3);
  d.act_gate = static_cast<kernels::Activation>(s.below(7));
  d.act_up = static_cast<kernels::Activation>(s.below(7));
  d.logit_softcap = s.one_in(4) ? 30.0f : 0.0f;
  if (s.one_in(4)) d.position_offset = s.size({0, 2});
  if (!s.one_in(3)) d.ropes.push_back({std::vector<float>(s.below(12), 0.5f)});
  d.layers.resize(1 + s.below(2));
  for (auto& l : d.layers) l = {s.size({0, 0, 16}), static_cast<int>(s.below(3)) - 1};
  return d;
}

// A file of tensors, filled with random bytes; the tensors a model wants, most of them right.
struct Files {
  std::string path;
  std::vector<uint8_t> bytes;
  std::vector<model::TensorRef> tensors;

  void add(Source& s, std::string role, int64_t layer, int64_t rows, int64_t cols) {
    if (s.one_in(300)) return;
    if (rows <= 0 || cols < 0 || rows > 4096 || cols > 4096) rows = 8, cols = 8;
    if (s.one_in(500)) std::swap(rows, cols);
    model::TensorRef t{
        std::move(role), layer, path, bytes.size(), 0, static_cast<quant::Format>(s.below(6)), rows, cols};
    if (cols == 0) t.format = quant::Format::f32;
    t.bytes = cols == 0 ? static_cast<uint64_t>(rows) * 4
                        : quant::packed_bytes(t.format, static_cast<size_t>(rows), static_cast<size_t>(cols));
    const size_t begin = bytes.size();
    bytes.resize(begin + (t.bytes + 63) / 64 * 64);
    // Mostly small numbers, so that a step runs; sometimes anything, NaN and infinity included.
    const bool wild = s.one_in(10);
    for (size_t i = begin; i < bytes.size(); ++i) bytes[i] = wild || i % 2 == 0 ? s.byte() : s.byte() & 0x3b;
    if (s.one_in(500)) t.offset += s.size({64, -64, 1 << 20});
    if (s.one_in(500)) t.bytes += static_cast<uint64_t>(s.size({1, 64}));
    if (s.one_in(500)) t.layer = s.size({-1, 7});
    tensors.push_back(std::move(t));
  }
};

// Sizes may be any number; add() replaces what is no shape.
int64_t product(int64_t a, int64_t b) {
  int64_t r;
  return __builtin_mul_overflow(a, b, &r) ? -1 : r;
}
int64_t sum(int64_t a, int64_t b) {
  int64_t r;
  return __builtin_add_overflow(a, b, &r) ? -1 : r;
}

void add_tensors(Source& s, const model::ModelDesc& d, bool dense, Files& f) {
  const int64_t q = product(d.heads, d.head_dim), kv = product(d.kv_heads, d.head_dim);
  f.add(s, "embed", -1, d.vocab, d.hidden);
  f.add(s, "final_norm", -1, d.hidden, 0);
  if (d.position_offset >= 0) f.add(s, "position", -1, sum(d.context, d.position_offset), d.hidden);
  for (size_t i = 0; i < d.layers.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    f.add(s, "q", layer, q, d.hidden), f.add(s, "k", layer, kv, d.hidden), f.add(s, "v", layer, kv, d.hidden);
    f.add(s, "o", layer, d.hidden, q);
    f.add(s, "attn_norm", layer, d.hidden, 0), f.add(s, "ffn_norm", layer, d.hidden, 0);
    if (d.qk_norm != model::QkNorm::none) {
      const bool full = d.qk_norm == model::QkNorm::full;
      f.add(s, "q_norm", layer, full ? q : d.head_dim, 0),
          f.add(s, "k_norm", layer, full ? kv : d.head_dim, 0);
    }
    if (!dense) continue;
    f.add(s, "up", layer, d.ffn, d.hidden), f.add(s, "down", layer, d.hidden, d.ffn);
    if (d.gated) f.add(s, "gate", layer, d.ffn, d.hidden);
  }
}

// Bundles at the end of the same file; checksums right, or a bit off.
pipeline::NeuronFile add_neurons(Source& s, const model::ModelDesc& d, Files& f) {
  pipeline::NeuronFile n{
      f.path, {s.one_in(2) ? quant::Format::q4_0 : quant::Format::q8_0, 0, d.gated, 0}, 0, {}, {}, {}, {}};
  n.layout.hidden = d.hidden > 0 && d.hidden <= 4096 ? static_cast<size_t>(d.hidden) : 32;
  n.neurons = d.ffn > 0 && d.ffn <= 4096 ? static_cast<size_t>(d.ffn) : 16;
  n.layout.stride = s.one_in(60) ? 512 : (n.layout.bytes() + 511) / 512 * 512;
  for (size_t i = 0; i < d.layers.size() + (s.one_in(60) ? 1 : 0); ++i) {
    f.bytes.resize((f.bytes.size() + 4095) / 4096 * 4096);
    n.offset.push_back(f.bytes.size() + (s.one_in(60) ? 4096 : 0));
    n.crc32c.emplace_back();
    for (size_t k = 0; k < n.neurons; ++k) {
      const size_t begin = f.bytes.size();
      f.bytes.resize(begin + n.layout.stride);
      for (size_t b = begin; b < f.bytes.size(); ++b) f.bytes[b] = s.byte() & 0x3b;
      n.crc32c.back().push_back(crc32c(f.bytes.data() + begin, std::min(n.layout.bytes(), n.layout.stride)) +
                                s.one_in(2000));
    }
  }
  return n;
}

void take_steps(Source& s, model::Engine& e) {
  const int32_t seq = e.kv().create();
  for (int step = 0; step < 3; ++step) {
    const int32_t count = static_cast<int32_t>(step == 0 ? 1 + s.below(40) : 1);
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    for (auto& t : tokens) t = static_cast<int32_t>(s.below(17)) - (s.one_in(100) ? 5 : 0);
    const uint8_t want = static_cast<uint8_t>(s.below(3));
    e.step({&seq, 1}, {&count, 1}, tokens, {&want, 1}, {}, {});
  }
}

// Returns whether the model loaded and ran.
bool run_case(uint64_t seed, const std::string& path) {
  Source s(seed);
  const model::ModelDesc desc = random_model(s);
  const bool dense = !s.one_in(3);
  Files files{path, {}, {}};
  add_tensors(s, desc, dense, files);
  const auto neurons = dense ? pipeline::NeuronFile{} : add_neurons(s, desc, files);
  if (s.one_in(20)) files.bytes.resize(s.below(files.bytes.size() + 1));
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(files.bytes.data()),
             static_cast<std::streamsize>(files.bytes.size()));
  model::EngineOptions options;
  options.threads = 1 + s.below(2);
  options.kv_tokens = 64 * (1 + s.below(3));
  options.max_step_tokens = 48;
  options.load = s.one_in(2) ? model::LoadMode::read : model::LoadMode::mmap;
  model::FfnFactory factory;
  if (!dense)
    factory = [&](const model::ModelDesc& d, const kernels::Kernels& k, size_t rows) {
      pipeline::SparseOptions o;
      o.hot.assign(neurons.layers(), static_cast<uint32_t>(s.size({0, 16, 5})));
      o.cold_slots = s.below(40);
      o.io.depth = 1 + s.below(16);
      return std::make_unique<pipeline::SparseFfn>(d, neurons, o, nullptr, k, rows);
    };
  try {
    model::Engine engine(desc, files.tensors, {}, options, factory);
    take_steps(s, engine);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const uint64_t iterations = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 300;
  const std::string path =
      std::filesystem::temp_directory_path() / ("hotset_fuzz_" + std::to_string(getpid()));
  uint64_t ran = 0;
  for (uint64_t i = 0; i < iterations; ++i) ran += run_case(seed + i, path);
  std::filesystem::remove(path);
  std::printf("%llu of %llu cases ran\n", static_cast<unsigned long long>(ran),
              static_cast<unsigned long long>(iterations));
  CHECK(ran * 20 > iterations);  // else the cases are too broken to reach the forward pass
  return check::report();
}
