// What the FFNs saw and did, for profiles and for the training of predictors. Off unless asked for.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

namespace hotset::model {

// Rows of all steps since the last clear(), one after another.
struct Record {
  bool activations = false, inputs = false;  // what is recorded
  size_t layers = 0, ffn = 0, hidden = 0;
  size_t rows = 0, first = 0;   // rows held; first of the running step
  std::vector<uint8_t> active;  // [rows][layers][ceil(ffn / 8)] bit i % 8 of byte i / 8: neuron i is not zero
  std::vector<float> input;     // [rows][layers][hidden]

  bool on() const { return activations || inputs; }
  size_t row_bytes() const { return (ffn + 7) / 8; }

  void begin_step(size_t n) {
    first = rows;
    if (!on()) return;
    rows += n;
    if (activations) active.resize(rows * layers * row_bytes());
    if (inputs) input.resize(rows * layers * hidden);
  }
  void abandon_step() {
    rows = first;
    if (activations) active.resize(rows * layers * row_bytes());
    if (inputs) input.resize(rows * layers * hidden);
  }
  void clear() {
    rows = first = 0;
    active.clear();
    input.clear();
  }

  // Marks neuron `i` of row t of the step; threads may share a byte.
  void mark(size_t t, size_t layer, size_t i) {
    uint8_t& byte = active[((first + t) * layers + layer) * row_bytes() + i / 8];
    std::atomic_ref<uint8_t>(byte).fetch_or(static_cast<uint8_t>(1u << i % 8), std::memory_order_relaxed);
  }
  // Marks where products[0..n), of neurons from `i` on, are not zero.
  void mark_all(size_t t, size_t layer, size_t i, const float* products, size_t n) {
    for (size_t k = 0; k < n; ++k)
      if (products[k] != 0.0f) mark(t, layer, i + k);
  }
  void keep_input(size_t t, size_t layer, const float* x) {
    std::memcpy(input.data() + ((first + t) * layers + layer) * hidden, x, hidden * sizeof(float));
  }
};

}  // namespace hotset::model
