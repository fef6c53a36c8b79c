// SparseFfn for a step of few tokens: the neurons that a predictor chooses, read while others are computed.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/trace.h"
#include "model/ffn_floor.h"
#include "pipeline/sparse_ffn.h"

namespace hotset::pipeline {

using model::Input;
using model::Rows;
using quant::Format;

namespace {

constexpr size_t kChunk = 16;  // neurons of one dot_neurons() call
constexpr size_t kBlockCols = quant::kLaneGroups * quant::kGroup;

kernels::Kernels::DotNeurons dots(const kernels::Kernels& k, Format f) {
  return f == Format::q4_0 ? k.dot_neurons_q4_0 : k.dot_neurons_q8_0;
}
kernels::Kernels::SumNeurons sums(const kernels::Kernels& k, Format f) {
  return f == Format::q4_0 ? k.sum_neurons_q4_0 : k.sum_neurons_q8_0;
}

}  // namespace

void SparseFfn::run_sparse(size_t layer, const Input& in, ThreadPool& pool, Rows y) {
  try {
    step(layer, in, pool, y);
  } catch (...) {
    abandon();
    throw;
  }
}

void SparseFfn::step(size_t layer, const Input& in, ThreadPool& pool, Rows y) {
  ++counters_.layers;
  for (size_t t = 0; t < in.rows; ++t) k_.quantize_lanes(in.f.row(t), lanes_.row(t));
  if (layer == 0) drop_unused();
  if (layer == 0 || !options_.ahead) choose(layer, in, pool);
  if (options_.ahead && layer + 1 < file_.layers()) choose(layer + 1, in, pool);
  Chosen& c = chosen(layer);
  if (c.layer != layer)
    throw InvalidArgument("sparse FFN: layer " + std::to_string(layer) + " follows none, wanted 0 first");
  {
    const trace::Span span("gate and up, in memory");
    compute(layer, c.present, in.rows, pool);
  }
  fetch_.wait(turn(layer));
  check(layer, c.coming, pool);
  c.layer = kNoLayer;
  {
    const trace::Span span("gate and up, read");
    compute(layer, c.coming, in.rows, pool);
  }
  if (record_->activations) {
    record(layer, c.present, in.rows);
    record(layer, c.coming, in.rows);
  }
  sum_down(c, in.rows, pool, y);
}

// What was read ahead for a step that then ended early has not been checked.
void SparseFfn::drop_unused() {
  if (chosen_[0].layer != kNoLayer || chosen_[1].layer != kNoLayer) abandon();
}

void SparseFfn::abandon() {
  fetch_.abandon();
  for (Chosen& c : chosen_) {
    if (c.layer != kNoLayer)
      for (const Neuron& n : c.coming.neurons) cache_.forget(c.layer, n.index);
    c.layer = kNoLayer;
  }
}

// Chooses a layer's neurons by the input at hand and asks for those that are not in memory.
void SparseFfn::choose(size_t layer, const Input& in, ThreadPool& pool) {
  Chosen& c = chosen(layer);
  c.present.neurons.clear();
  c.coming.neurons.clear();
  c.spilled = 0;
  c.layer = layer;
  cache_.begin();
  if (!predictor_) {
    for (uint32_t i = 0; i < file_.neurons; ++i) consider(c, i, 0);
  } else {
    {
      const trace::Span span("predict");
      predictor_->score(layer, in, pool, scores_);
    }
    const trace::Span span("select");
    const float keep = options_.keep[layer];
    for (uint32_t i = 0; i < file_.neurons; ++i) {
      float best = scores_.data[i];
      for (size_t t = 1; t < in.rows; ++t) best = std::max(best, scores_.row(t)[i]);
      if (best >= keep) consider(c, i, best);
    }
  }
  counters_.candidates += c.present.neurons.size() + c.coming.neurons.size();
  counters_.missed += c.coming.neurons.size();
  trace::count("neurons in memory", static_cast<double>(c.present.neurons.size()));
  trace::count("neurons missing", static_cast<double>(c.coming.neurons.size()));
}

void SparseFfn::consider(Chosen& c, uint32_t neuron, float score) {
  if (const uint8_t* bundle = cache_.find(c.layer, neuron))
    c.present.neurons.push_back({neuron, bundle});
  else if (!predictor_ || score >= options_.fetch[c.layer])
    request(c, neuron);
  else
    ++counters_.skipped;
}

void SparseFfn::request(Chosen& c, uint32_t neuron) {
  uint8_t* place = cache_.admit(c.layer, neuron);
  if (!place) place = spill_.data() + (turn(c.layer) * spill_slots_ + c.spilled++) * held_bytes_;
  c.coming.neurons.push_back({neuron, place});
  fetch_.add(turn(c.layer), c.layer, neuron, place);
}

// The calling thread feeds the drive between its chunks.
void SparseFfn::compute(size_t layer, List& list, size_t rows, ThreadPool& pool) {
  const size_t n = list.neurons.size(), chunks = (n + kChunk - 1) / kChunk;
  list.products.assign(rows * n, 0.0f);
  fetch_.pump(kFirstReads);
  pool.parallel_for(chunks, 1, [&](size_t first, size_t last, size_t thread) {
    if (thread == 0) fetch_.pump(kMoreReads);
    for (size_t c = first; c < last; ++c)
      compute_chunk(layer, list, c * kChunk, std::min(n, (c + 1) * kChunk), rows);
  });
}

void SparseFfn::check(size_t layer, const List& list, ThreadPool& pool) const {
  const trace::Span span("check");
  const auto& sums = gate_known_ ? file_.crc32c_no_gate[layer] : file_.crc32c[layer];
  pool.parallel_for(list.neurons.size(), 64, [&](size_t begin, size_t end, size_t) {
    for (size_t i = begin; i < end; ++i) {
      const Neuron& n = list.neurons[i];
      check_bundle(file_, layer, n.index, n.bundle, used_bytes_, sums[n.index]);
    }
  });
}

// products[t][begin..end): f(gate x_t) * h(up x_t), up only where f(gate) is not zero for some token.
void SparseFfn::compute_chunk(size_t layer, List& chosen, size_t begin, size_t end, size_t rows) {
  const std::vector<Neuron>& list = chosen.neurons;
  const model::FfnFloor& floor = desc_.layers[layer].floor;
  const size_t n = end - begin;
  const auto dot = dots(k_, file_.layout.format);
  const uint8_t* vectors[kChunk];
  float gate[kMostSparseRows][kChunk], up[kChunk];
  size_t at[kChunk], live = 0;
  if (desc_.gated) {
    for (size_t i = 0; i < n; ++i) vectors[i] = list[begin + i].bundle + file_.layout.gate_offset();
    for (size_t t = 0; t < rows; ++t) {
      if (gate_known_)
        for (size_t i = 0; i < n; ++i) gate[t][i] = scores_.row(t)[list[begin + i].index];
      else
        dot(vectors, n, lanes_.row(t), gate[t]);
      if (!file_.gate_bias.empty())
        for (size_t i = 0; i < n; ++i) gate[t][i] += file_.gate_bias[layer][list[begin + i].index];
      k_.activate(desc_.act_gate, desc_.gate_threshold, n, gate[t]);
      model::drop_below(floor.gate, n, gate[t]);
    }
    for (size_t i = 0; i < n; ++i) {
      bool any = false;
      for (size_t t = 0; t < rows; ++t) any |= gate[t][i] != 0.0f;
      if (any) at[live++] = i;
    }
  } else {
    for (live = 0; live < n; ++live) at[live] = live;
  }
  for (size_t i = 0; i < live; ++i) vectors[i] = list[begin + at[i]].bundle;
  for (size_t t = 0; t < rows && live > 0; ++t) {
    dot(vectors, live, lanes_.row(t), up);
    if (!file_.up_bias.empty())
      for (size_t i = 0; i < live; ++i) up[i] += file_.up_bias[layer][list[begin + at[i]].index];
    if (desc_.gated)
      k_.activate(desc_.act_up, desc_.up_threshold, live, up);
    else
      k_.activate(desc_.act_gate, desc_.gate_threshold, live, up);
    float* out = chosen.products.data() + t * list.size() + begin;
    for (size_t i = 0; i < live; ++i) {
      const float product = desc_.gated ? gate[t][at[i]] * up[i] : up[i];
      const float least = floor.product.empty() ? 0.0f : floor.product[list[begin + at[i]].index];
      out[at[i]] = std::fabs(product) < least ? 0.0f : product;
    }
  }
}

void SparseFfn::record(size_t layer, const List& list, size_t rows) {
  for (size_t t = 0; t < rows; ++t)
    for (size_t i = 0; i < list.neurons.size(); ++i)
      if (list.products[t * list.neurons.size() + i] != 0.0f) record_->mark(t, layer, list.neurons[i].index);
}

// y[t] = sum of products[t][i] * down_i over both lists, merged in store order. Threads share the columns.
void SparseFfn::sum_down(const Chosen& c, size_t rows, ThreadPool& pool, Rows y) {
  const trace::Span span("down");
  const auto sum = sums(k_, file_.layout.format);
  const size_t hidden = desc_.hidden, blocks = (hidden + kBlockCols - 1) / kBlockCols;
  const auto &here = c.present.neurons, &come = c.coming.neurons;
  for (size_t t = 0; t < rows; ++t) {
    down_.clear();
    weights_.clear();
    const auto take = [&](const Neuron& neuron, float product) {
      if (product == 0.0f) return;
      down_.push_back(neuron.bundle + file_.layout.down_offset());
      weights_.push_back(product);
    };
    const float *known = c.present.products.data() + t * here.size(),
                *later = c.coming.products.data() + t * come.size();
    for (size_t i = 0, j = 0; i < here.size() || j < come.size();) {
      if (j == come.size() || (i < here.size() && here[i].index < come[j].index)) {
        take(here[i], known[i]);
        ++i;
      } else {
        take(come[j], later[j]);
        ++j;
      }
    }
    counters_.active += down_.size();
    pool.parallel_for(blocks, std::max<size_t>(1, blocks / (2 * pool.size())),
                      [&](size_t begin, size_t end, size_t) {
                        sum(down_.data(), weights_.data(), down_.size(), hidden, begin, end, y.row(t));
                      });
  }
}

}  // namespace hotset::pipeline
