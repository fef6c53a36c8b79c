// Kernels on vectors of single neurons against sums in double over the decoded weights.
#include <algorithm>

#include "kernel_cases.h"
#include "quant/half.h"
#include "quant/neuron.h"
#include "quant/sketch.h"

namespace cases {
namespace {

using namespace hotset;

struct Neurons {
  Format format;
  size_t cols, count;
  std::vector<uint8_t> bytes;
  std::vector<const uint8_t*> vectors;
  std::vector<float> weights;  // [count][cols] as decoded

  explicit Neurons(Rng& rng)
      : format(rng.pick({Format::q4_0, Format::q8_0})),
        cols(rng.between(1, 1700)),
        count(rng.between(1, 20)) {
    const size_t size = quant::vector_bytes(format, cols);
    bytes.resize(count * size);
    weights.resize(count * cols);
    for (size_t i = 0; i < count; ++i) {
      const auto w = rng.values(cols, rng.pick({1e-3f, 1.0f, 30.0f}));
      quant::encode_vector(format, w.data(), cols, bytes.data() + i * size);
      quant::decode_vector(format, bytes.data() + i * size, cols, weights.data() + i * cols);
      vectors.push_back(bytes.data() + i * size);
    }
  }
  size_t padded() const { return (cols + 31) / 32 * 32; }
  // As quant/neuron.h lays them out.
  size_t lanes(size_t c) const { return std::min<size_t>(16, (cols + 31) / 32 - c / 512 * 16); }
  const uint8_t* block(size_t i, size_t c) const {
    return vectors[i] + quant::vector_bytes(format, c / 512 * 512);
  }
  float scale(size_t i, size_t c) const {
    uint16_t bits;
    std::memcpy(&bits, block(i, c) + c % 512 / 32 * 2, 2);
    return quant::f16_to_f32(bits);
  }
  int code(size_t i, size_t c) const {
    const bool four = format == Format::q4_0;
    const size_t r = four ? c % 16 : c % 32;
    const uint8_t byte = block(i, c)[lanes(c) * 2 + (r / 4 * lanes(c) + c % 512 / 32) * 4 + r % 4];
    return four ? (c % 32 < 16 ? byte & 15 : byte >> 4) - 8 : byte - 128;
  }
};

// A tile of lane vectors with its memory.
struct Lanes {
  std::vector<int8_t> q;
  std::vector<float> d;
  std::vector<int32_t> s;
  kernels::LaneVector view;

  Lanes(const Kernels& k, Rng& rng, size_t tokens, size_t cols) {
    const size_t groups = (cols + 511) / 512 * quant::kLaneGroups * tokens;
    q.resize(groups * quant::kGroup);
    d.resize(groups);
    s.resize(groups);
    view = {q.data(), d.data(), s.data(), cols, tokens};
    for (size_t t = 0; t < tokens; ++t) {
      const auto x = rng.values(cols, 1.0f);
      k.quantize_lanes(x.data(), view.token(t));
      for (size_t c = 0; c < cols; ++c)
        close(at(t, c), x[c], d[scale_at(t, c)] * 0.5001, k.isa, "quantize_lanes", c);
    }
  }
  size_t scale_at(size_t t, size_t c) const { return (c / 512 * view.stride + t) * 16 + c % 512 / 32; }
  double at(size_t t, size_t c) const {
    const size_t block = c / 512 * view.stride + t, g = c % 512 / 32, j = c % 32 / 4, b = c % 4;
    return static_cast<double>(d[scale_at(t, c)]) * q[block * 512 + (j * 16 + g) * 4 + b];
  }
};

void check_dot(const Kernels& k, const Neurons& n, size_t i, const Lanes& x, size_t t, float got) {
  double want = 0, magnitude = 0;
  for (size_t c = 0; c < n.cols; ++c) {
    want += x.at(t, c) * n.weights[i * n.cols + c];
    magnitude += std::abs(x.at(t, c) * n.weights[i * n.cols + c]);
  }
  close(got, want, magnitude * kUnit * (static_cast<double>(n.cols) / 32 + 8), k.isa, "dot_neurons", i);
}

// Some tokens for every neuron, and the products that dot_neurons() gave for them.
void check_pairs(const Kernels& k, Rng& rng, const Neurons& n, const Lanes& x,
                 const std::vector<float>& all) {
  const size_t rows = x.view.stride;
  std::vector<uint32_t> first{0};
  std::vector<uint16_t> tokens;
  std::vector<float> want;
  for (size_t i = 0; i < n.count; ++i) {
    const bool most = rng.one_in(3);
    for (size_t t = 0; t < rows; ++t) {
      if (rng.one_in(most ? rows + 1 : 2)) continue;
      tokens.push_back(static_cast<uint16_t>(t));
      want.push_back(all[i * rows + t]);
    }
    first.push_back(static_cast<uint32_t>(tokens.size()));
  }
  std::vector<float> got(tokens.size());
  const auto pairs = n.format == Format::q4_0 ? k.dot_pairs_q4_0 : k.dot_pairs_q8_0;
  pairs(n.vectors.data(), n.count, x.view, first.data(), tokens.data(), got.data());
  CHECK(same_bits(got, want));
}

// Some of the neurons, some of them more than once, and their weights.
struct Window {
  std::vector<size_t> neuron;
  std::vector<const uint8_t*> vectors;
  std::vector<float> a;

  Window(const Neurons& n, Rng& rng, size_t count) : a(rng.values(count, rng.pick({1e-6f, 1.0f, 1e4f}))) {
    for (size_t i = 0; i < count; ++i) {
      neuron.push_back(rng.between(0, n.count - 1));
      vectors.push_back(n.vectors[neuron[i]]);
      if (rng.one_in(8)) a[i] = rng.pick({0.0f, -0.0f});
    }
  }
  kernels::SumWindow view() const { return {vectors.data(), a.data(), a.size()}; }
  Window without_zeros() const {
    Window w = *this;
    w.vectors.clear();
    w.a.clear();
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i] == 0.0f) continue;
      w.vectors.push_back(vectors[i]);
      w.a.push_back(a[i]);
    }
    return w;
  }
};

// Column c of a window's sum as kernels.h defines it: whole numbers times one unit.
float twin_sum(const Neurons& n, const Window& w, size_t c) {
  float most = 1e-30f;
  for (size_t i = 0; i < w.a.size(); ++i) most = std::max(most, std::abs(n.scale(w.neuron[i], c) * w.a[i]));
  const float per_weight = 16383.0f / most;
  int64_t sum = 0;
  for (size_t i = 0; i < w.a.size(); ++i)
    sum += std::lrint(n.scale(w.neuron[i], c) * w.a[i] * per_weight) * n.code(w.neuron[i], c);
  return static_cast<float>(sum) * (most * (1.0f / 16383.0f));
}

// `times` windows' sum against one in double: a weight is off by half a unit, and f32 rounds a few times.
void check_sum(const Kernels& k, const Neurons& n, const Window& w, size_t c, int times, float got) {
  double want = 0, magnitude = 0, most = 1e-30;
  for (size_t i = 0; i < w.a.size(); ++i) {
    const double product = static_cast<double>(w.a[i]) * n.weights[w.neuron[i] * n.cols + c];
    want += product;
    magnitude += std::abs(product);
    most = std::max(most, std::abs(static_cast<double>(w.a[i]) * n.scale(w.neuron[i], c)));
  }
  const double codes = n.format == Format::q4_0 ? 8 : 128, count = static_cast<double>(w.a.size());
  const double rounded = count * codes * most * 0.501 / 16383;
  close(got, times * want, times * (rounded + magnitude * kUnit * 8), k.isa, "add_neurons", c);
}

}  // namespace

void check_neuron_dots(const Kernels& k, Rng rng) {
  const Neurons n(rng);
  const size_t rows = rng.one_in(2) ? rng.between(1, 4) : rng.between(5, 40);
  const Lanes x(k, rng, rows, n.cols);
  const auto dots = n.format == Format::q4_0 ? k.dot_neurons_q4_0 : k.dot_neurons_q8_0;
  std::vector<float> all(n.count * rows), one(n.count * rows);
  dots(n.vectors.data(), n.count, x.view, rows, all.data());
  for (size_t i = 0; i < n.count; ++i)
    for (size_t t = 0; t < rows; ++t) {
      check_dot(k, n, i, x, t, all[i * rows + t]);
      dots(&n.vectors[i], 1, x.view.token(t), 1, &one[i * rows + t]);
    }
  CHECK(same_bits(all, one));
  check_pairs(k, rng, n, x, all);
}

void check_neuron_sums(const Kernels& k, Rng rng) {
  const Neurons n(rng);
  const Window w(n, rng, rng.one_in(4) ? rng.between(1, kernels::kSumWindow) : rng.between(1, 40));
  const size_t blocks = (n.cols + 511) / 512;
  const auto add = n.format == Format::q4_0 ? k.add_neurons_q4_0 : k.add_neurons_q8_0;
  std::vector<float> out(n.padded()), parts(n.padded());
  add(w.view(), n.cols, 0, blocks, out.data());
  for (size_t b = 0; b < blocks; ++b) add(w.without_zeros().view(), n.cols, b, b + 1, parts.data());
  CHECK(same_bits(out, parts));
  add({nullptr, nullptr, 0, w.vectors.data(), w.vectors.size()}, n.cols, 0, blocks, parts.data());
  CHECK(same_bits(out, parts));
  k.order_sums(n.cols, 0, blocks, out.data());
  for (size_t c = n.cols; c < out.size(); ++c) CHECK(out[c] == 0.0f);
  for (size_t c = 0; c < n.cols; ++c) {
    close(out[c], twin_sum(n, w, c), 0, k.isa, "add_neurons, twin", c);
    check_sum(k, n, w, c, 1, out[c]);
  }
  // A second window, and one that is not finite.
  add(w.view(), n.cols, 0, blocks, parts.data());
  k.order_sums(n.cols, 0, blocks, parts.data());
  for (size_t c = 0; c < n.cols; ++c) check_sum(k, n, w, c, 2, parts[c]);
  Window broken = w;
  broken.a[0] = rng.pick({INFINITY, -INFINITY, NAN});
  add(broken.view(), n.cols, 0, blocks, parts.data());
  for (size_t c = 0; c < n.cols; ++c) CHECK(!std::isfinite(parts[c]) || c % 512 / 32 > 0);
}

// The largest codes and weights that a window may hold: integers as large as they get.
void check_largest_sums(const Kernels& k, Rng rng) {
  const bool four = rng.one_in(2);
  const Format format = four ? Format::q4_0 : Format::q8_0;
  const uint8_t code = rng.pick<uint8_t>({0, 0xff});
  std::vector<uint8_t> vector(quant::vector_bytes(format, 512), code);
  for (size_t g = 0; g < 16; ++g) std::memcpy(&vector[2 * g], "\x00\x3c", 2);  // 1
  const std::vector<const uint8_t*> vectors(kernels::kSumWindow, vector.data());
  const std::vector<float> a(vectors.size(), rng.pick({1.0f, -1.0f}));
  std::vector<float> out(512);
  (four ? k.add_neurons_q4_0 : k.add_neurons_q8_0)({vectors.data(), a.data(), a.size()}, 512, 0, 1,
                                                   out.data());
  const double each = code ? (four ? 7 : 127) : (four ? -8 : -128);
  for (size_t c = 0; c < 512; ++c)
    close(out[c], each * a[0] * 512, std::abs(each) * 512 * 2 * kUnit, k.isa, "largest sums", c);
}

// Neurons as rows of a matrix keep every value.
void check_neuron_packing(const Kernels& k, Rng rng) {
  const Neurons n(rng);
  const bool four = n.format == Format::q4_0;
  const size_t rows = std::min<size_t>(n.count, 16);
  std::vector<uint8_t> packed(quant::row_block_bytes(n.format, n.cols), 0xcd);
  (four ? k.interleave_neurons_q4_0 : k.interleave_neurons_q8_0)(n.vectors.data(), rows, n.cols,
                                                                 packed.data());
  std::vector<float> row(n.cols);
  for (size_t r = 0; r < 16; ++r) {
    quant::decode_row(n.format, packed.data(), r, n.cols, row.data());
    for (size_t c = 0; c < n.cols; ++c)
      close(row[c], r < rows ? n.weights[r * n.cols + c] : 0.0, 0, k.isa, "interleave_neurons", c);
  }
}

void check_sketch_dots(const Kernels& k, Rng rng) {
  const unsigned bits = rng.one_in(2) ? 2 : 3;
  const size_t cols = rng.between(1, 1700), count = rng.between(1, 20), rows = rng.between(1, 9);
  const size_t size = quant::sketch_vector_bytes(bits, cols);
  const auto w = rng.values(count * cols, rng.pick({1e-3f, 1.0f, 30.0f}));
  const std::vector<float> importance(cols, 1.0f);
  std::vector<uint8_t> bytes(count * size);
  std::vector<float> weights(count * cols);
  quant::encode_sketch(bits, w.data(), count, cols, importance.data(), bytes.data());
  quant::decode_sketch(bits, bytes.data(), count, cols, weights.data());
  std::vector<const uint8_t*> vectors;
  for (size_t i = 0; i < count; ++i) vectors.push_back(bytes.data() + (count - 1 - i) * size);  // any order
  const Lanes x(k, rng, rows, cols);
  const auto dots = bits == 2 ? k.dot_sketch_2 : k.dot_sketch_3;
  std::vector<float> all(count * rows), one(count * rows);
  dots(vectors.data(), count, x.view, rows, all.data());
  for (size_t i = 0; i < count; ++i)
    for (size_t t = 0; t < rows; ++t) {
      double want = 0, magnitude = 0;
      for (size_t c = 0; c < cols; ++c) {
        const double term = x.at(t, c) * weights[(count - 1 - i) * cols + c];
        want += term, magnitude += std::abs(term);
      }
      const double tolerance = magnitude * kUnit * (static_cast<double>(cols) / 32 + 8);
      close(all[i * rows + t], want, tolerance, k.isa, "dot_sketch", i);
      dots(&vectors[i], 1, x.view.token(t), 1, &one[i * rows + t]);
    }
  CHECK(same_bits(all, one));
}

}  // namespace cases
