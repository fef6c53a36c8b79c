// Where magnitudes below a floor become 0. Loops that the compiler vectorizes: they touch a row once after
// each product of matrices.
#pragma once

#include <cmath>
#include <cstddef>

#include "kernels/kernels.h"
#include "model/descriptor.h"

namespace hotset::model {

inline void drop_below(float floor, size_t n, float* x) {
  for (size_t i = 0; i < n; ++i) x[i] = std::fabs(x[i]) < floor ? 0.0f : x[i];
}
inline void drop_below(const float* floors, size_t n, float* x) {
  for (size_t i = 0; i < n; ++i) x[i] = std::fabs(x[i]) < floors[i] ? 0.0f : x[i];
}

// h = f(gate) * h(up) of neurons [first, first + count), from h = gate x and up = up x, biases included; in a
// plain FFN h = f(up) from h = up x. What is below the layer's floors becomes 0.
inline void finish_products(const kernels::Kernels& k, const ModelDesc& d, size_t layer, size_t first,
                            size_t count, const float* up, float* h) {
  const FfnFloor& floor = d.layers[layer].floor;
  kernels::Activation act = d.act_gate;
  if (!d.gated || floor.gate > 0.0f) {
    k.activate(act, d.gate_threshold, count, h);
    drop_below(floor.gate, count, h);
    act = kernels::Activation::none;
  }
  if (d.gated) k.glu(act, d.gate_threshold, d.act_up, d.up_threshold, up, count, h);
  if (!floor.product.empty()) drop_below(floor.product.data() + first, count, h);
}

}  // namespace hotset::model
