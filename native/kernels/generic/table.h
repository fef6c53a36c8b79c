// Puts one ISA's kernels into the table of kernels.h.
#pragma once

#include "kernels/generic/attend.h"
#include "kernels/generic/elementwise.h"
#include "kernels/generic/logits.h"
#include "kernels/generic/matmul_float.h"
#include "kernels/generic/matmul_quant.h"
#include "kernels/generic/neuron_dot.h"
#include "kernels/generic/neuron_pack.h"
#include "kernels/generic/neuron_sum.h"
#include "kernels/generic/sketch.h"
#include "kernels/tables.h"

namespace hotset::kernels::generic {

// V: vector traits. D<format>: dot product traits of q4_0, q4_1, q8_0.
template <class V, template <quant::Format> class D>
constexpr Kernels make_table(const char* isa) {
  using quant::Format;
  return {isa,
          matmul_quant<D<Format::q4_0>>,
          matmul_quant<D<Format::q4_1>>,
          matmul_quant<D<Format::q8_0>>,
          matmul_float<V, Format::f16>,
          matmul_float<V, Format::bf16>,
          matmul_float<V, Format::f32>,
          quantize<V>,
          rms_norm<V>,
          layer_norm<V>,
          add<V>,
          activate<V>,
          glu<V>,
          expected<V>,
          rope<V>,
          kv_store<V>,
          attend<V>,
          quantize_lanes<V>,
          dot_neurons<D<Format::q4_0>>,
          dot_neurons<D<Format::q8_0>>,
          dot_pairs<D<Format::q4_0>>,
          dot_pairs<D<Format::q8_0>>,
          add_neurons<D<Format::q4_0>>,
          add_neurons<D<Format::q8_0>>,
          order_sums<V>,
          interleave_neurons<D<Format::q4_0>>,
          interleave_neurons<D<Format::q8_0>>,
          logsumexp<V>,
          block_maxima<V>,
          softmax_weights<V>,
          dot_sketch<V, 2>,
          dot_sketch<V, 3>};
}

}  // namespace hotset::kernels::generic
