#include "predictor/sketch.h"

#include <algorithm>
#include <cmath>

#include "model/lane_rows.h"
#include "quant/sketch.h"

namespace hotset::predictor {
namespace {

constexpr size_t kChunk = 128;  // neurons a thread takes at a time

class Sketch : public Predictor {
 public:
  Sketch(const SketchShape& shape, std::vector<SketchLayer> layers, Memory memory,
         const model::ModelDesc& desc, const kernels::Kernels& k)
      : shape_(shape),
        layers_(std::move(layers)),
        memory_(std::move(memory)),
        desc_(desc),
        k_(k),
        vector_(quant::sketch_vector_bytes(shape.bits, shape.hidden)),
        lanes_(kernels::kTile, shape.hidden) {}

  void score(size_t layer, const Input& in, ThreadPool& pool, Rows scores) override {
    lanes_.shape(in.rows);
    for (size_t t = 0; t < in.rows; ++t) k_.quantize_lanes(in.f.row(t), lanes_.row(t));
    scratch_.resize(pool.size());
    pool.parallel_for((shape_.neurons + kChunk - 1) / kChunk, 1,
                      [&](size_t begin, size_t end, size_t thread) {
                        for (size_t c = begin; c < end; ++c)
                          score_chunk(layers_[layer], c * kChunk, in.rows, scores, scratch_[thread]);
                      });
  }
  size_t bytes() const override {
    size_t n = lanes_.bytes();
    for (const Buffer& b : memory_) n += b.size();
    return n;
  }
  size_t bytes_per_token() const override { return bytes(); }  // at most

 private:
  struct Scratch {
    float products[kChunk * kernels::kTile];  // [neurons][tokens]
    uint32_t chosen[kChunk];                  // neurons of the chunk whose up is looked at
    float offset[kChunk], noise[kChunk], most[kChunk], up[kChunk];  // theirs
  };

  // Neurons [first, first + kChunk) for all tokens.
  void score_chunk(const SketchLayer& l, size_t first, size_t tokens, Rows scores, Scratch& s) const {
    const size_t n = std::min(kChunk, shape_.neurons - first);
    product(l.gate ? l.gate : l.up, n, tokens, [=](size_t i) { return first + i; }, s);
    for (size_t t = 0; t < tokens; ++t) {
      float* score = scores.row(t) + first;
      for (size_t i = 0; i < n; ++i) score[i] = s.products[i * tokens + t];
      k_.add((l.gate ? l.gate_offset : l.up_offset) + first, n, score);
      k_.expected(desc_.act_gate, desc_.gate_threshold, (l.gate ? l.gate_noise : l.up_noise) + first, n,
                  score);
      for (size_t i = 0; i < n; ++i) score[i] = std::fabs(score[i]) * l.reach[first + i];
    }
    if (!l.gate) return;
    const size_t chosen = choose(l, first, n, tokens, scores, s);
    product(l.up, chosen, tokens, [&](size_t i) { return first + s.chosen[i]; }, s);
    for (size_t t = 0; t < tokens; ++t) multiply(l, first, n, chosen, t, tokens, scores.row(t) + first, s);
  }

  // s.chosen: neurons that may be worth computing for any token, by the gate alone.
  size_t choose(const SketchLayer& l, size_t first, size_t n, size_t tokens, Rows scores, Scratch& s) const {
    size_t chosen = 0;
    for (uint32_t i = 0; i < n; ++i) {
      float best = scores.row(0)[first + i];
      for (size_t t = 1; t < tokens; ++t) best = std::max(best, scores.row(t)[first + i]);
      s.chosen[chosen] = i;
      chosen += best * l.most[first + i] >= l.keep;
    }
    for (size_t j = 0; j < chosen; ++j) {
      const size_t i = first + s.chosen[j];
      s.offset[j] = l.up_offset[i], s.noise[j] = l.up_noise[i], s.most[j] = l.most[i];
    }
    return chosen;
  }

  // Scores of one token from what the gate says, up's where that was looked at, and else the most it may be.
  void multiply(const SketchLayer& l, size_t first, size_t n, size_t chosen, size_t t, size_t tokens,
                float* score, Scratch& s) const {
    for (size_t j = 0; j < chosen; ++j) s.up[j] = s.products[j * tokens + t];
    k_.add(s.offset, chosen, s.up);
    k_.expected(desc_.act_up, desc_.up_threshold, s.noise, chosen, s.up);
    for (size_t j = 0; j < chosen; ++j)
      s.up[j] = score[s.chosen[j]] * std::min(std::fabs(s.up[j]), s.most[j]);
    for (size_t i = 0; i < n; ++i) score[i] *= l.most[first + i];
    for (size_t j = 0; j < chosen; ++j) score[s.chosen[j]] = s.up[j];
  }

  // s.products of the tokens with vectors at(0), at(1), .. of a sketch.
  template <class At>
  void product(const uint8_t* sketch, size_t n, size_t tokens, At at, Scratch& s) const {
    const uint8_t* vectors[kChunk];
    for (size_t i = 0; i < n; ++i) vectors[i] = sketch + at(i) * vector_;
    (shape_.bits == 2 ? k_.dot_sketch_2 : k_.dot_sketch_3)(vectors, n, lanes_.row(0), tokens, s.products);
  }

  SketchShape shape_;
  std::vector<SketchLayer> layers_;
  Memory memory_;
  const model::ModelDesc& desc_;
  const kernels::Kernels& k_;
  size_t vector_;  // bytes
  model::LaneRows lanes_;
  std::vector<Scratch> scratch_;
};

}  // namespace

std::unique_ptr<Predictor> make_sketch(const SketchShape& shape, std::vector<SketchLayer> layers,
                                       Memory memory, const model::ModelDesc& desc,
                                       const kernels::Kernels& k) {
  return std::make_unique<Sketch>(shape, std::move(layers), std::move(memory), desc, k);
}

}  // namespace hotset::predictor
