// Scores from low-bit copies of gate and up: what each neuron is expected to add to the layer's output.
//
// score = E|f(gate' x + a)| * min(E|h(up' x + b)|, most) * ‖down‖, with gate', up' sketches (quant/sketch.h),
// a, b what they are wrong by for the mean input, biases included, and the expectations over what else they
// are wrong by, taken as normal. So neurons that a sketch takes for zero are ranked by how likely they are
// not. Needs no training, works for activations that are never 0, and ranks by contribution, of which half as
// many neurons carry almost all.
//
// `most` is what up adds at most, as far as was seen: no neuron can then score more than its gate times that,
// and up is looked at only where this is enough to be chosen.
#pragma once

#include <vector>

#include "predictor/matrix.h"

namespace hotset::predictor {

struct SketchLayer {
  const uint8_t *gate, *up;  // a vector of each neuron in store order; gate null in a plain FFN
  const float *gate_offset, *up_offset, *reach;  // [neurons]; reach: ‖down‖
  const float *gate_noise, *up_noise;            // [neurons] standard deviations of what they are wrong by
  const float* most;                             // [neurons]; not used in a plain FFN
  float keep;  // least score of a neuron that is computed; what is below may be more than the score
};

struct SketchShape {
  unsigned bits;
  size_t neurons, hidden;
};

// memory: what the layers point into.
std::unique_ptr<Predictor> make_sketch(const SketchShape& shape, std::vector<SketchLayer> layers,
                                       Memory memory, const model::ModelDesc& desc,
                                       const kernels::Kernels& k);

}  // namespace hotset::predictor
