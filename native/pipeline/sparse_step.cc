// SparseFfn for a step of few tokens: the neurons that a predictor chooses, read while others are computed.
#include <algorithm>

#include "base/error.h"
#include "base/trace.h"
#include "pipeline/sparse_ffn.h"

namespace hotset::pipeline {

using model::Input;
using model::Rows;

namespace {

constexpr size_t kChunk = 32;    // neurons a thread takes at a time
constexpr size_t kArrived = 16;  // of those read: few, as the rest comes meanwhile
constexpr size_t kAlone = 64;  // for which the calling thread wakes no other while the drive wants to be fed

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
  lanes_.shape(in.rows);
  for (size_t t = 0; t < in.rows; ++t) k_.quantize_lanes(in.f.row(t), lanes_.row(t));
  if (layer == 0 || !options_.ahead) choose(layer, in, pool);
  if (options_.ahead && layer + 1 < file_.layers()) choose(layer + 1, in, pool);
  Chosen& c = chosen(layer);
  if (c.layer != layer)
    throw InvalidArgument("sparse FFN: layer " + std::to_string(layer) + " follows none, wanted 0 first");
  if (!options_.overlap) fetch_.wait(turn(layer));
  {
    const trace::Span span("gate and up, in memory");
    compute(layer, c.present, in.rows, pool);
  }
  compute_arrivals(layer, c.coming, in.rows, pool);
  c.layer = kNoLayer;
  if (record_->activations) {
    record(layer, c.present, in.rows);
    record(layer, c.coming, in.rows);
  }
  sum_down(c, in.rows, pool, y);
}

// What was read ahead for a step that then ended early has not been checked, and may still be on its way to
// places that a pass over all neurons would give to others.
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
  if (cache_.full())
    fetch_.register_memory(cache_.cold_memory());  // not before: that makes all of it resident
  if (!predictor_) {
    for (uint32_t i = 0; i < file_.neurons; ++i) consider(c, i, 0);
  } else {
    {
      const trace::Span span("predict");
      predictor_->score(layer, in, pool, scores_);
    }
    const trace::Span span("select");
    const float* best = best_scores(in.rows);
    for (const uint32_t i : worth_computing(best, options_.keep[layer])) consider(c, i, best[i]);
  }
  // After all look-ups: making room may cost what this layer has and is yet to be asked for.
  request(c);
  counters_.candidates += c.present.neurons.size() + c.coming.neurons.size();
  counters_.missed += c.coming.neurons.size();
  trace::count("neurons in memory", static_cast<double>(c.present.neurons.size()));
  trace::count("neurons missing", static_cast<double>(c.coming.neurons.size()));
}

// The best score of each neuron for any token.
const float* SparseFfn::best_scores(size_t rows) {
  if (rows == 1) return scores_.data;
  best_.assign(scores_.data, scores_.data + file_.neurons);
  for (size_t t = 1; t < rows; ++t)
    for (size_t i = 0; i < file_.neurons; ++i) best_[i] = std::max(best_[i], scores_.row(t)[i]);
  return best_.data();
}

// Neurons that score at least `keep`, in store order; without a branch, which nobody could predict.
std::span<const uint32_t> SparseFfn::worth_computing(const float* scores, float keep) {
  size_t n = 0;
  for (uint32_t i = 0; i < file_.neurons; ++i) {
    worth_[n] = i;
    n += scores[i] >= keep;
  }
  return {worth_.data(), n};
}

void SparseFfn::consider(Chosen& c, uint32_t neuron, float score) {
  if (const uint8_t* bundle = cache_.find(c.layer, neuron))
    c.present.neurons.push_back({neuron, bundle});
  else if (!predictor_ || score >= options_.fetch[c.layer])
    c.coming.neurons.push_back({neuron, nullptr});
  else
    ++counters_.skipped;
}

uint8_t* SparseFfn::place(Chosen& c, uint32_t neuron) {
  if (uint8_t* slot = cache_.admit(c.layer, neuron)) return slot;
  if (c.spilled == spill_slots_) return nullptr;
  return spill_.data() + (turn(c.layer) * spill_slots_ + c.spilled++) * held_bytes_;
}

// In store order, so what finds no place is what is rarely active.
void SparseFfn::request(Chosen& c) {
  auto& missing = c.coming.neurons;
  const size_t wanted = missing.size();
  std::erase_if(missing, [&](Neuron& neuron) {
    uint8_t* to = place(c, neuron.index);
    if (!to) return true;
    neuron.bundle = to;
    fetch_.add(turn(c.layer), c.layer, neuron.index, to);
    return false;
  });
  counters_.skipped += wanted - missing.size();
}

// What is missing comes before what the next layer's choice wants.
void SparseFfn::read_on() {
  fetch_.pump(kMoreReads);
  if (predictor_) predictor_->read_on();
}

// The calling thread feeds the drive between its chunks.
void SparseFfn::compute(size_t layer, List& list, size_t rows, ThreadPool& pool) {
  const size_t n = list.neurons.size();
  list.products.assign(rows * n, 0.0f);
  fetch_.pump(kFirstReads);
  pool.parallel_for(n, kChunk, [&](size_t begin, size_t end, size_t thread) {
    if (thread == 0) read_on();
    compute_chunk(layer, std::span<const Neuron>(list.neurons).subspan(begin, end - begin), rows,
                  scratch_[thread], list.products.data() + begin, n);
  });
}

// Whatever has come, while the rest is on its way. Where the drive is slower than the cores that is a handful
// at a time, which takes no longer than to wake another thread and wait for it; only with nothing else to do
// the drive is waited for.
void SparseFfn::compute_arrivals(size_t layer, List& list, size_t rows, ThreadPool& pool) {
  list.products.resize(rows * list.neurons.size());
  for (;;) {
    const auto arrived = fetch_.arrived(turn(layer));
    if (arrived.empty()) return;
    const trace::Span span("gate and up, read");
    const size_t grain = fetch_.coming(turn(layer)) > 0 ? kAlone : kArrived;
    pool.parallel_for(arrived.size(), grain, [&](size_t begin, size_t end, size_t thread) {
      for (size_t i = begin; i < end; i += kArrived) {
        if (thread == 0) read_on();
        const auto some = arrived.subspan(i, std::min(kArrived, end - i));
        compute_arrived(layer, list, some, rows, scratch_[thread]);
      }
    });
  }
}

// Checked just before, so that they are in the core's cache.
void SparseFfn::compute_arrived(size_t layer, List& list, std::span<const uint32_t> arrived, size_t rows,
                                Products::Scratch& scratch) {
  Neuron neurons[kArrived];
  float products[kArrived * kMostSparseRows];
  const size_t n = arrived.size();
  for (size_t i = 0; i < n; ++i) neurons[i] = list.neurons[arrived[i]];
  check(layer, {neurons, n});
  compute_chunk(layer, {neurons, n}, rows, scratch, products, n);
  for (size_t t = 0; t < rows; ++t)
    for (size_t i = 0; i < n; ++i) list.products[t * list.neurons.size() + arrived[i]] = products[t * n + i];
}

void SparseFfn::check(size_t layer, std::span<const Neuron> neurons) const {
  const trace::Span span("check");
  const auto& sums = gate_known_ ? file_.crc32c_no_gate[layer] : file_.crc32c[layer];
  for (const Neuron& n : neurons) check_bundle(file_, layer, n.index, n.bundle, used_bytes_, sums[n.index]);
}

// products[t * ld + i]: f(gate x_t) * h(up x_t) of neuron i.
void SparseFfn::compute_chunk(size_t layer, std::span<const Neuron> neurons, size_t rows,
                              Products::Scratch& scratch, float* products, size_t ld) {
  const uint8_t* bundles[kChunk];
  uint32_t index[kChunk];
  for (size_t i = 0; i < neurons.size(); ++i) {
    bundles[i] = neurons[i].bundle;
    index[i] = neurons[i].index;
  }
  const KnownGates known = gate_known_ ? KnownGates{scores_.data, scores_.ld, 0} : KnownGates{};
  products_.run({layer, bundles, index, neurons.size()}, lanes_.row(0), rows, known, scratch, products, ld);
}

void SparseFfn::record(size_t layer, const List& list, size_t rows) {
  for (size_t t = 0; t < rows; ++t)
    for (size_t i = 0; i < list.neurons.size(); ++i)
      if (list.products[t * list.neurons.size() + i] != 0.0f) record_->mark(t, layer, list.neurons[i].index);
}

// y[t] = sum of products[t][i] * down_i over both lists, merged in store order.
void SparseFfn::sum_down(const Chosen& c, size_t rows, ThreadPool& pool, Rows y) {
  const trace::Span span("down");
  down_.begin(rows);
  const auto &here = c.present.neurons, &come = c.coming.neurons;
  const auto add = [&](const List& list, size_t i) {
    const Neuron& neuron = list.neurons[i];
    down_.add(neuron.index, neuron.bundle + file_.layout.down_offset(), list.products.data() + i,
              list.neurons.size());
  };
  for (size_t i = 0, j = 0; i < here.size() || j < come.size();) {
    if (j == come.size() || (i < here.size() && here[i].index < come[j].index))
      add(c.present, i++);
    else
      add(c.coming, j++);
  }
  counters_.active += down_.active();
  down_.run(pool, y);
}

}  // namespace hotset::pipeline
