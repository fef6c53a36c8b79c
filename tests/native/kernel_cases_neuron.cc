// Kernels on vectors of single neurons against sums in double over the decoded weights.
#include "kernel_cases.h"
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
  const auto a = rng.values(n.count, 1.0f);
  const auto sums = n.format == Format::q4_0 ? k.sum_neurons_q4_0 : k.sum_neurons_q8_0;
  const auto add = n.format == Format::q4_0 ? k.add_neurons_q4_0 : k.add_neurons_q8_0;
  const size_t blocks = (n.cols + 511) / 512, cut = rng.between(0, n.count);
  std::vector<float> out(n.cols), parts(n.cols), pieces((n.cols + 31) / 32 * 32);
  sums(n.vectors.data(), a.data(), n.count, n.cols, 0, blocks, out.data());
  for (size_t b = 0; b < blocks; ++b) {
    sums(n.vectors.data(), a.data(), n.count, n.cols, b, b + 1, parts.data());
    add(n.vectors.data(), a.data(), cut, n.cols, b, b + 1, pieces.data());
  }
  add(n.vectors.data() + cut, a.data() + cut, n.count - cut, n.cols, 0, blocks, pieces.data());
  k.order_sums(n.cols, 0, blocks, pieces.data());
  CHECK(same_bits(out, parts));
  for (size_t c = n.cols; c < pieces.size(); ++c) CHECK(pieces[c] == 0.0f);
  pieces.resize(n.cols);
  CHECK(same_bits(out, pieces));
  for (size_t c = 0; c < n.cols; ++c) {
    double want = 0, magnitude = 0;
    for (size_t i = 0; i < n.count; ++i) {
      want += static_cast<double>(a[i]) * n.weights[i * n.cols + c];
      magnitude += std::abs(a[i] * n.weights[i * n.cols + c]);
    }
    close(out[c], want, magnitude * kUnit * static_cast<double>(n.count + 4), k.isa, "sum_neurons", c);
  }
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
