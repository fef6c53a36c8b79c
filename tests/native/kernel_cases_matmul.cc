#include "kernel_cases.h"
#include "quant/half.h"

namespace cases {

namespace {

using namespace hotset;

struct Weights {
  Format format;
  size_t rows, cols;
  std::vector<uint8_t> packed;
  std::vector<double> decoded;  // [rows, cols]

  Weights(Format f, size_t r, size_t c, Rng& rng)
      : format(f), rows(r), cols(c), packed(quant::packed_bytes(f, r, c)) {
    const std::vector<float> w = rng.values(r * c, rng.pick({1.0f, 0.02f, 1e-4f, 300.0f}));
    quant::encode(f, w.data(), r, c, packed.data());
    std::vector<float> row(c);
    for (size_t i = 0; i < r; ++i) {
      quant::decode_row(f, packed.data(), i, c, row.data());
      decoded.insert(decoded.end(), row.begin(), row.end());
    }
  }
  size_t row_blocks() const { return quant::row_blocks(rows); }
  size_t col_blocks() const { return quant::col_blocks(cols); }
  const uint8_t* block(size_t b) const { return packed.data() + b * quant::row_block_bytes(format, cols); }
  double offset(size_t r, size_t c) const {
    if (format != Format::q4_1) return 0;
    const uint8_t* offsets = block(r / 16) + c / 64 * quant::col_block_bytes(format) + 64;
    uint16_t bits;
    std::memcpy(&bits, offsets + (c % 64 / 32 * 16 + r % 16) * 2, 2);
    return quant::f16_to_f32(bits);
  }
};

struct Tile {
  std::vector<int8_t> q;
  std::vector<float> d;
  std::vector<int32_t> s;
  kernels::QTile view;

  Tile(const Kernels& k, const float* x, size_t n, size_t cols) {
    const size_t groups = quant::col_blocks(cols) * 2;
    q.assign(groups * n * 32, 77);  // quantize must write the padding too
    d.assign(groups * n, 77.0f);
    s.assign(groups * n, 77);
    view = {q.data(), d.data(), s.data(), n};
    for (size_t t = 0; t < n; ++t) k.quantize(x + t * cols, cols, view, t);
  }
  double value(size_t t, size_t col) const {
    const size_t at = col / 32 * view.n + t;
    return static_cast<double>(d[at]) * q[at * 32 + col % 32];
  }
};

// Runs the whole product, then again in random cuts of rows and with every token alone: no bit may change.
template <class Run>
std::vector<float> run_all_ways(const Weights& w, size_t n, Rng& rng, Run&& run) {
  const size_t ld = w.row_blocks() * 16;
  std::vector<float> whole(n * ld, 99.0f), cut = whole, single = whole;
  run(0, w.row_blocks(), 0, n, whole.data(), ld);
  for (size_t b = 0; b < w.row_blocks();) {
    const size_t blocks = rng.between(1, w.row_blocks() - b);
    run(b, blocks, 0, n, cut.data() + b * 16, ld);
    b += blocks;
  }
  for (size_t t = 0; t < n; ++t) run(0, w.row_blocks(), t, 1, single.data() + t * ld, ld);
  CHECK(same_bits(whole, cut));
  CHECK(same_bits(whole, single));
  return whole;
}

size_t random_cols(Rng& rng) { return rng.one_in(3) ? rng.between(1, 8) * 64 : rng.between(1, 600); }

}  // namespace

// |error| <= (roundings on the longest chain) * unit * sum |term|: a term is one group, of which the f32 side
// rounds scale * d, its product and the sum; q4_1 adds a second term per group.
void check_matmul_quantized(const Kernels& k, Rng rng) {
  const Format f = rng.pick({Format::q4_0, Format::q4_1, Format::q8_0});
  const Weights w(f, rng.between(1, 70), random_cols(rng), rng);
  const size_t n = rng.between(1, kernels::kTile);
  const std::vector<float> x = rng.values(n * w.cols, rng.pick({1.0f, 1e-6f, 1e6f, 1e-18f, 1e15f}));
  const auto kernel = f == Format::q4_0 ? k.matmul_q4_0 : f == Format::q4_1 ? k.matmul_q4_1 : k.matmul_q8_0;
  const std::vector<float> out = run_all_ways(
      w, n, rng, [&](size_t block, size_t blocks, size_t token, size_t tokens, float* dst, size_t ld) {
        const Tile tile(k, x.data() + token * w.cols, tokens, w.cols);
        kernel(w.block(block), blocks, w.col_blocks(), tile.view, dst, static_cast<ptrdiff_t>(ld));
      });
  const Tile tile(k, x.data(), n, w.cols);
  for (size_t t = 0; t < n; ++t) {
    for (size_t r = 0; r < w.rows; ++r) {
      double want = 0, magnitude = 0;
      for (size_t c = 0; c < w.cols; ++c) {
        const double weight = w.decoded[r * w.cols + c], offset = w.offset(r, c), a = tile.value(t, c);
        want += weight * a;
        magnitude += (std::abs(weight - offset) + std::abs(offset)) * std::abs(a);
      }
      const double tolerance = (4.0 * static_cast<double>(w.col_blocks()) + 8) * kUnit * magnitude + 1e-37;
      close(out[t * w.row_blocks() * 16 + r], want, tolerance, k.isa, "matmul_quantized", t * 1000 + r);
    }
  }
}

// |error| <= (cols + 1) * unit * sum |term|: one rounding per addition, one more per product where it is not
// fused.
void check_matmul_float(const Kernels& k, Rng rng) {
  const Format f = rng.pick({Format::f16, Format::bf16, Format::f32});
  const Weights w(f, rng.between(1, 150), rng.between(1, 300), rng);
  const size_t n = rng.between(1, kernels::kTile), ldx = w.col_blocks() * 64 + rng.between(0, 3);
  std::vector<float> x(n * ldx, 0.0f);
  for (size_t t = 0; t < n; ++t) {
    const std::vector<float> token = rng.values(w.cols, rng.pick({1.0f, 1e-6f, 1e10f}));
    std::memcpy(&x[t * ldx], token.data(), w.cols * sizeof(float));
  }
  const auto kernel = f == Format::f16 ? k.matmul_f16 : f == Format::bf16 ? k.matmul_bf16 : k.matmul_f32;
  const std::vector<float> out = run_all_ways(
      w, n, rng, [&](size_t block, size_t blocks, size_t token, size_t tokens, float* dst, size_t ld) {
        kernel(w.block(block), blocks, w.col_blocks(), x.data() + token * ldx, static_cast<ptrdiff_t>(ldx),
               tokens, dst, static_cast<ptrdiff_t>(ld));
      });
  for (size_t t = 0; t < n; ++t) {
    for (size_t r = 0; r < w.rows; ++r) {
      double want = 0, magnitude = 0;
      for (size_t c = 0; c < w.cols; ++c) {
        const double term = w.decoded[r * w.cols + c] * x[t * ldx + c];
        want += term;
        magnitude += std::abs(term);
      }
      const double tolerance = (static_cast<double>(w.cols) + 2) * kUnit * magnitude + 1e-37;
      close(out[t * w.row_blocks() * 16 + r], want, tolerance, k.isa, "matmul_float", t * 1000 + r);
    }
  }
}

}  // namespace cases
