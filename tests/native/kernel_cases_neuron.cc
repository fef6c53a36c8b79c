// Kernels on vectors of single neurons against sums in double over the decoded weights.
#include "kernel_cases.h"
#include "quant/half.h"
#include "quant/neuron.h"

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

// The lane vector with its memory.
struct Lanes {
  std::vector<int8_t> q;
  std::vector<float> d;
  std::vector<int32_t> s;
  kernels::LaneVector view;

  explicit Lanes(size_t cols) {
    const size_t groups = (cols + 511) / 512 * quant::kLaneGroups;
    q.resize(groups * quant::kGroup);
    d.resize(groups);
    s.resize(groups);
    view = {q.data(), d.data(), s.data(), cols};
  }
  double at(size_t c) const {
    const size_t block = c / 512, g = c % 512 / 32, j = c % 32 / 4, b = c % 4;
    return static_cast<double>(d[block * 16 + g]) * q[block * 512 + (j * 16 + g) * 4 + b];
  }
};

}  // namespace

void check_neuron_dots(const Kernels& k, Rng rng) {
  const Neurons n(rng);
  const auto x = rng.values(n.cols, 1.0f);
  Lanes lanes(n.cols);
  k.quantize_lanes(x.data(), lanes.view);
  for (size_t c = 0; c < n.cols; ++c)
    close(lanes.at(c), x[c], lanes.d[c / 512 * 16 + c % 512 / 32] * 0.5001, k.isa, "quantize_lanes", c);
  const auto dots = n.format == Format::q4_0 ? k.dot_neurons_q4_0 : k.dot_neurons_q8_0;
  std::vector<float> out(n.count), one(n.count);
  dots(n.vectors.data(), n.count, lanes.view, out.data());
  for (size_t i = 0; i < n.count; ++i) {
    dots(&n.vectors[i], 1, lanes.view, &one[i]);
    double want = 0, magnitude = 0;
    for (size_t c = 0; c < n.cols; ++c) {
      want += lanes.at(c) * n.weights[i * n.cols + c];
      magnitude += std::abs(lanes.at(c) * n.weights[i * n.cols + c]);
    }
    close(out[i], want, magnitude * kUnit * (static_cast<double>(n.cols) / 32 + 8), k.isa, "dot_neurons", i);
  }
  CHECK(same_bits(out, one));
}

void check_neuron_sums(const Kernels& k, Rng rng) {
  const Neurons n(rng);
  const auto a = rng.values(n.count, 1.0f);
  const auto sums = n.format == Format::q4_0 ? k.sum_neurons_q4_0 : k.sum_neurons_q8_0;
  const size_t blocks = (n.cols + 511) / 512;
  std::vector<float> out(n.cols), parts(n.cols);
  sums(n.vectors.data(), a.data(), n.count, n.cols, 0, blocks, out.data());
  for (size_t b = 0; b < blocks; ++b)
    sums(n.vectors.data(), a.data(), n.count, n.cols, b, b + 1, parts.data());
  CHECK(same_bits(out, parts));
  // Codes are summed unsigned and the zero point is taken off at the end: their magnitude bounds the
  // rounding.
  const double zero = n.format == Format::q4_0 ? 8 : 128;
  for (size_t c = 0; c < n.cols; ++c) {
    double want = 0, magnitude = 0;
    for (size_t i = 0; i < n.count; ++i) {
      want += static_cast<double>(a[i]) * n.weights[i * n.cols + c];
      uint16_t bits;
      const size_t group = c / 32, first = group / 16 * 16;
      std::memcpy(&bits, n.vectors[i] + quant::vector_bytes(n.format, first * 32) + (group - first) * 2, 2);
      magnitude += std::abs(a[i]) * std::abs(quant::f16_to_f32(bits));
    }
    close(out[c], want, magnitude * zero * 4 * kUnit * static_cast<double>(n.count + 4), k.isa, "sum_neurons",
          c);
  }
}

// Neurons as matrices: rows keep every value, the transposed matrix is rounded to 8 bits by groups of 32
// neurons.
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

  const size_t stride = quant::col_block_bytes(Format::q8_0), row_blocks = (n.cols + 15) / 16;
  std::vector<uint8_t> transposed(row_blocks * stride, 0xcd);
  for (size_t b = 0; b * 512 < n.cols; ++b)
    (four ? k.transpose_neurons_q4_0 : k.transpose_neurons_q8_0)(n.vectors.data(), n.count, n.cols, b,
                                                                 transposed.data() + b * 32 * stride, stride);
  std::vector<float> column(64);
  for (size_t c = 0; c < n.cols; ++c) {
    double top = 0;
    for (size_t i = 0; i < n.count; ++i) top = std::max<double>(top, std::abs(n.weights[i * n.cols + c]));
    quant::decode_row(Format::q8_0, transposed.data(), c, 64, column.data());
    // Half a step, and the scale's own rounding to f16 (subnormal ones have fewer bits).
    const double tolerance = top / 254 * 1.01 + top * 0x1p-10 + 127 * 0x1p-25;
    for (size_t i = 0; i < 64; ++i)
      close(column[i], i < n.count ? n.weights[i * n.cols + c] : 0.0, tolerance, k.isa, "transpose_neurons",
            c);
  }
}

}  // namespace cases
