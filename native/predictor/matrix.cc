#include "predictor/matrix.h"

#include <algorithm>

namespace hotset::predictor {
namespace {

using model::Linear;
using model::Matrix;
using model::Product;
using model::QuantizedRows;

const model::Vector kNoBias;

class Gate : public Predictor {
 public:
  Gate(std::vector<Matrix> gates, Memory memory, const kernels::Kernels& k)
      : gates_(std::move(gates)), memory_(std::move(memory)), k_(k) {}

  void score(size_t layer, const Input& in, ThreadPool& pool, Rows scores) override {
    Linear linear(k_, pool);
    const Matrix& gate = gates_[layer];
    linear.prepare(in, gate.cols, {&gate});
    const Product product[] = {{&gate, &kNoBias, scores}};
    linear.run(in, product);
  }
  const Matrix* gate(size_t layer) const override { return &gates_[layer]; }
  size_t bytes() const override {
    size_t n = 0;
    for (const Matrix& m : gates_) n += m.bytes();
    return n;
  }
  size_t bytes_per_token() const override { return bytes(); }

 private:
  std::vector<Matrix> gates_;
  Memory memory_;
  const kernels::Kernels& k_;
};

class LowRankMap : public Predictor {
 public:
  LowRankMap(std::vector<LowRank> layers, Memory memory, bool relu, size_t max_rows,
             const kernels::Kernels& k)
      : layers_(std::move(layers)), weights_(std::move(memory)), relu_(relu), k_(k) {
    size_t rank = 0;
    for (const LowRank& l : layers_) rank = std::max(rank, l.down.rows);
    ld_ = model::pad_to(rank, quant::kColBlock);
    memory_ = Buffer(model::pad_to(max_rows, kernels::kTile) * ld_ * sizeof(float));
    quantized_ = QuantizedRows(max_rows, ld_);
  }

  void score(size_t layer, const Input& in, ThreadPool& pool, Rows scores) override {
    Linear linear(k_, pool);
    const LowRank& l = layers_[layer];
    const Rows inner{reinterpret_cast<float*>(memory_.data()), ld_};
    linear.prepare(in, l.down.cols, {&l.down});
    const Product down[] = {{&l.down, &kNoBias, inner}};
    linear.run(in, down);
    if (relu_)
      for (size_t t = 0; t < in.rows; ++t)
        k_.activate(kernels::Activation::relu, 0, l.down.rows, inner.row(t));
    const Input middle{inner, &quantized_, in.rows};
    linear.prepare(middle, l.up.cols, {&l.up});
    const Product up[] = {{&l.up, &kNoBias, scores}};
    linear.run(middle, up);
  }
  size_t bytes() const override {
    size_t n = 0;
    for (const LowRank& l : layers_) n += l.down.bytes() + l.up.bytes();
    return n;
  }
  size_t bytes_per_token() const override { return bytes(); }

 private:
  std::vector<LowRank> layers_;
  Memory weights_;
  bool relu_;
  const kernels::Kernels& k_;
  size_t ld_ = 0;
  Buffer memory_;
  QuantizedRows quantized_;
};

}  // namespace

std::unique_ptr<Predictor> make_gate(std::vector<Matrix> gates, Memory memory, const kernels::Kernels& k) {
  return std::make_unique<Gate>(std::move(gates), std::move(memory), k);
}

std::unique_ptr<Predictor> make_low_rank(std::vector<LowRank> layers, Memory memory, bool relu,
                                         size_t max_rows, const kernels::Kernels& k) {
  return std::make_unique<LowRankMap>(std::move(layers), std::move(memory), relu, max_rows, k);
}

}  // namespace hotset::predictor
