// What neurons give before down: f(gate x) * h(up x), for some neurons and several tokens at once.
//
// Gates are computed for every (neuron, token) pair, up only for the pairs whose gate is not zero, which with
// ReLU are a fifth of them. A product depends neither on the other neurons nor on the other
// tokens of a call, so decode, verification of drafts and prompts agree bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "model/descriptor.h"
#include "pipeline/neuron_file.h"

namespace hotset::pipeline {

// Gates that were computed elsewhere, before bias: of neuron i and token t at data[t * ld + i - first].
struct KnownGates {
  const float* data = nullptr;  // null: not known
  size_t ld = 0, first = 0;
};

class Products {
 public:
  // All three outlive it.
  Products(const model::ModelDesc& desc, const NeuronFile& file, const kernels::Kernels& k)
      : desc_(desc), file_(file), k_(k) {}

  struct Neurons {
    size_t layer;
    const uint8_t* const* bundles;  // [n]
    const uint32_t* index;          // [n] in the layer
    size_t n;
  };
  // One thread's memory, reused.
  struct Scratch {
    std::vector<float> gate, pair_gate, up;
    std::vector<uint32_t> first, at;
    std::vector<uint16_t> token;
    std::vector<const uint8_t*> vectors;
  };
  // out[t * ld + i] for all n neurons and `tokens` <= 65536 tokens from x on. Thread-safe.
  void run(const Neurons& neurons, const kernels::LaneVector& x, size_t tokens, const KnownGates& known,
           Scratch& s, float* out, size_t ld) const;

 private:
  const model::FfnFloor& floor_of(size_t layer) const { return desc_.layers[layer].floor; }
  float least_product(size_t layer, uint32_t neuron) const {
    return floor_of(layer).product.empty() ? 0.0f : floor_of(layer).product[neuron];
  }
  void plain(const Neurons& neurons, const kernels::LaneVector& x, size_t tokens, Scratch& s, float* out,
             size_t ld) const;
  void gates(const Neurons& neurons, const kernels::LaneVector& x, size_t tokens, const KnownGates& known,
             Scratch& s) const;
  void choose(const Neurons& neurons, size_t tokens, Scratch& s) const;
  void dot(const uint8_t* const* vectors, size_t n, const kernels::LaneVector& x, size_t tokens,
           float* out) const;

  const model::ModelDesc& desc_;
  const NeuronFile& file_;
  const kernels::Kernels& k_;
};

}  // namespace hotset::pipeline
