// A model as data: everything the forward pass needs to know, and no name of any architecture.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace hotset::model {

enum class NormKind : uint8_t { rms, layer };
enum class QkNorm : uint8_t { none, per_head, full };  // full: over all heads together (OLMo 2)

// One set of rotary frequencies. cos/sin(position * inv_freq) * attention_factor, halves paired.
struct RopeDesc {
  std::vector<float> inv_freq;    // [rotary_dim / 2]
  float attention_factor = 1.0f;  // YaRN's mscale
  // Dynamic NTK: beyond original_context the base grows with the sequence's length; 0 = off.
  float dynamic_factor = 0.0f, dynamic_base = 0.0f;
  int64_t original_context = 0;
};

// Magnitudes below which values in an FFN count as 0, which makes a model sparse that was not trained to be.
// All 0: off.
struct FfnFloor {
  float input = 0.0f;          // of the inputs of gate and up (TEAL, arXiv:2408.14690)
  float gate = 0.0f;           // of f(gate x) (CATS, arXiv:2404.08763)
  std::vector<float> product;  // [ffn], of what goes into down, by neuron; empty = off
};

struct LayerDesc {
  int64_t window = 0;  // tokens a query may look back, itself included; 0 = all
  int rope = -1;       // index into ModelDesc::ropes; -1 = no rotation
  FfnFloor floor = {};
};

struct ModelDesc {
  int64_t hidden = 0, vocab = 0, ffn = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t context = 0;  // the model's own limit
  NormKind norm = NormKind::rms;
  float norm_eps = 1e-5f, norm_offset = 0.0f;  // offset: Gemma's (1 + w)
  QkNorm qk_norm = QkNorm::none;
  float attention_scale = 0.0f;  // multiplies q.k
  float embedding_scale = 1.0f, logit_scale = 1.0f, logit_softcap = 0.0f, residual_scale = 1.0f;
  int64_t position_offset = -1;  // >= 0: learned positions, row = position + offset (OPT: 2)
  bool parallel = false;  // attention and FFN read the same x (Falcon); without ffn_norm, the same norm
  bool gated = true;      // down(f(gate) * h(up)) or down(f(up))
  kernels::Activation act_gate = kernels::Activation::silu;  // f
  kernels::Activation act_up = kernels::Activation::none;    // h; for a plain FFN unused
  float gate_threshold = 0.0f, up_threshold = 0.0f;          // of shifted_relu
  std::vector<RopeDesc> ropes;
  std::vector<LayerDesc> layers;
};

}  // namespace hotset::model
