#include "pipeline/products.h"

#include <algorithm>
#include <cmath>

#include "model/ffn_floor.h"

namespace hotset::pipeline {

using kernels::LaneVector;
using quant::Format;

void Products::dot(const uint8_t* const* vectors, size_t n, const LaneVector& x, size_t tokens,
                   float* out) const {
  (file_.layout.format == Format::q4_0 ? k_.dot_neurons_q4_0 : k_.dot_neurons_q8_0)(vectors, n, x, tokens,
                                                                                    out);
}

namespace {
void add_bias(const std::vector<float>& bias, const uint32_t* index, size_t n, size_t tokens, float* values) {
  for (size_t i = 0; i < n; ++i)
    for (size_t t = 0; t < tokens; ++t) values[i * tokens + t] += bias[index[i]];
}
}  // namespace

// s.gate[i * tokens + t], with bias and activation.
void Products::gates(const Neurons& neurons, const LaneVector& x, size_t tokens, const KnownGates& known,
                     Scratch& s) const {
  s.gate.resize(neurons.n * tokens);
  s.vectors.resize(neurons.n);
  for (size_t i = 0; i < neurons.n; ++i) s.vectors[i] = neurons.bundles[i] + file_.layout.gate_offset();
  if (known.data == nullptr) {
    dot(s.vectors.data(), neurons.n, x, tokens, s.gate.data());
  } else {
    for (size_t i = 0; i < neurons.n; ++i)
      for (size_t t = 0; t < tokens; ++t)
        s.gate[i * tokens + t] = known.data[t * known.ld + neurons.index[i] - known.first];
  }
  if (!file_.gate_bias.empty())
    add_bias(file_.gate_bias[neurons.layer], neurons.index, neurons.n, tokens, s.gate.data());
  k_.activate(desc_.act_gate, desc_.gate_threshold, s.gate.size(), s.gate.data());
  model::drop_below(floor_of(neurons.layer).gate, s.gate.size(), s.gate.data());
}

// The pairs whose gate is not zero: neuron s.at[k] with tokens s.token[s.first[k]..s.first[k + 1]).
void Products::choose(const Neurons& neurons, size_t tokens, Scratch& s) const {
  s.first.assign(1, 0);
  s.at.clear();
  s.token.clear();
  s.pair_gate.clear();
  s.vectors.clear();
  for (size_t i = 0; i < neurons.n; ++i) {
    for (size_t t = 0; t < tokens; ++t) {
      const float gate = s.gate[i * tokens + t];
      if (gate == 0.0f) continue;
      s.token.push_back(static_cast<uint16_t>(t));
      s.pair_gate.push_back(gate);
    }
    if (s.token.size() == s.first.back()) continue;
    s.first.push_back(static_cast<uint32_t>(s.token.size()));
    s.at.push_back(static_cast<uint32_t>(i));
    s.vectors.push_back(neurons.bundles[i]);
  }
}

// FFNs without a gate: f(up x).
void Products::plain(const Neurons& neurons, const LaneVector& x, size_t tokens, Scratch& s, float* out,
                     size_t ld) const {
  s.up.resize(neurons.n * tokens);
  dot(neurons.bundles, neurons.n, x, tokens, s.up.data());
  if (!file_.up_bias.empty())
    add_bias(file_.up_bias[neurons.layer], neurons.index, neurons.n, tokens, s.up.data());
  k_.activate(desc_.act_gate, desc_.gate_threshold, s.up.size(), s.up.data());
  model::drop_below(floor_of(neurons.layer).gate, s.up.size(), s.up.data());
  for (size_t i = 0; i < neurons.n; ++i) {
    const float least = least_product(neurons.layer, neurons.index[i]);
    for (size_t t = 0; t < tokens; ++t) {
      const float product = s.up[i * tokens + t];
      out[t * ld + i] = std::fabs(product) < least ? 0.0f : product;
    }
  }
}

void Products::run(const Neurons& neurons, const LaneVector& x, size_t tokens, const KnownGates& known,
                   Scratch& s, float* out, size_t ld) const {
  if (!desc_.gated) return plain(neurons, x, tokens, s, out, ld);
  gates(neurons, x, tokens, known, s);
  choose(neurons, tokens, s);
  s.up.resize(s.token.size());
  const auto pairs = file_.layout.format == Format::q4_0 ? k_.dot_pairs_q4_0 : k_.dot_pairs_q8_0;
  pairs(s.vectors.data(), s.at.size(), x, s.first.data(), s.token.data(), s.up.data());
  if (!file_.up_bias.empty())
    for (size_t k = 0; k < s.at.size(); ++k)
      for (size_t p = s.first[k]; p < s.first[k + 1]; ++p)
        s.up[p] += file_.up_bias[neurons.layer][neurons.index[s.at[k]]];
  k_.activate(desc_.act_up, desc_.up_threshold, s.up.size(), s.up.data());
  for (size_t t = 0; t < tokens; ++t) std::fill_n(out + t * ld, neurons.n, 0.0f);
  for (size_t k = 0; k < s.at.size(); ++k) {
    const float least = least_product(neurons.layer, neurons.index[s.at[k]]);
    for (size_t p = s.first[k]; p < s.first[k + 1]; ++p) {
      const float product = s.pair_gate[p] * s.up[p];
      out[s.token[p] * ld + s.at[k]] = std::fabs(product) < least ? 0.0f : product;
    }
  }
}

}  // namespace hotset::pipeline
