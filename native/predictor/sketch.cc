#include "predictor/sketch.h"

#include <algorithm>
#include <cmath>

#include "quant/sketch.h"

namespace hotset::predictor {
namespace {

using kernels::kTile;
using quant::kRowBlock;

class Sketch : public Predictor {
 public:
  Sketch(const SketchShape& shape, std::vector<SketchLayer> layers, Memory memory,
         const model::ModelDesc& desc, const kernels::Kernels& k)
      : shape_(shape), layers_(std::move(layers)), memory_(std::move(memory)), desc_(desc), k_(k) {}

  void score(size_t layer, const Input& in, ThreadPool& pool, Rows scores) override {
    const model::Matrix reader{layers_[layer].up, quant::Format::q8_0, shape_.neurons, shape_.hidden};
    model::Linear(k_, pool).prepare(in, shape_.hidden, {&reader});
    scratch_.resize(pool.size());
    const size_t blocks = quant::row_blocks(shape_.neurons);
    pool.parallel_for(blocks, std::max<size_t>(1, blocks / (pool.size() * 8)),
                      [&](size_t begin, size_t end, size_t thread) {
                        for (size_t b = begin; b < end; ++b)
                          score_block(layers_[layer], b, in, scores, scratch_[thread]);
                      });
  }
  size_t bytes() const override {
    size_t n = 0;
    for (const Buffer& b : memory_) n += b.size();
    return n;
  }
  size_t bytes_per_token() const override { return bytes(); }

 private:
  struct Scratch {
    std::vector<uint8_t> matrix;                           // one row block in 8 bits
    float gate[kTile * kRowBlock], up[kTile * kRowBlock];  // [tokens][rows]
  };

  // Neurons [16 * block, 16 * block + 16) for all tokens.
  void score_block(const SketchLayer& l, size_t block, const Input& in, Rows scores, Scratch& s) const {
    const size_t first = block * kRowBlock, n = std::min(kRowBlock, shape_.neurons - first);
    for (size_t tile = 0; tile * kTile < in.rows; ++tile) {
      const kernels::QTile x = in.q->tile(tile);
      if (l.gate) product(l.gate, block, x, s.matrix, s.gate);
      product(l.up, block, x, s.matrix, s.up);
      for (size_t t = 0; t < x.n; ++t) {
        float *up = s.up + t * kRowBlock, *score = scores.row(tile * kTile + t) + first;
        std::copy_n(l.gate ? s.gate + t * kRowBlock : up, n, score);
        k_.add((l.gate ? l.gate_offset : l.up_offset) + first, n, score);
        const float* noise = (l.gate ? l.gate_noise : l.up_noise) + first;
        k_.expected(desc_.act_gate, desc_.gate_threshold, noise, n, score);
        if (l.gate) {
          k_.add(l.up_offset + first, n, up);
          k_.expected(desc_.act_up, desc_.up_threshold, l.up_noise + first, n, up);
          for (size_t i = 0; i < n; ++i) score[i] *= up[i];
        }
        for (size_t i = 0; i < n; ++i) score[i] = std::fabs(score[i]) * l.reach[first + i];
      }
    }
  }

  void product(const uint8_t* sketch, size_t block, const kernels::QTile& x, std::vector<uint8_t>& matrix,
               float* out) const {
    const size_t cols = quant::col_blocks(shape_.hidden);
    matrix.resize(cols * quant::col_block_bytes(quant::Format::q8_0));
    k_.expand_sketch(sketch + block * quant::sketch_row_block_bytes(shape_.bits, shape_.hidden), shape_.bits,
                     cols, matrix.data());
    k_.matmul_q8_0(matrix.data(), 1, cols, x, out, kRowBlock);
  }

  SketchShape shape_;
  std::vector<SketchLayer> layers_;
  Memory memory_;
  const model::ModelDesc& desc_;
  const kernels::Kernels& k_;
  std::vector<Scratch> scratch_;
};

}  // namespace

std::unique_ptr<Predictor> make_sketch(const SketchShape& shape, std::vector<SketchLayer> layers,
                                       Memory memory, const model::ModelDesc& desc,
                                       const kernels::Kernels& k) {
  return std::make_unique<Sketch>(shape, std::move(layers), std::move(memory), desc, k);
}

}  // namespace hotset::predictor
