// What an Engine needs to compute its FFNs from a file of neurons.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <string>
#include <vector>

#include "pipeline/gate_stream.h"
#include "pipeline/load_predictor.h"
#include "pipeline/sparse_ffn.h"

namespace hotset::bind {

struct SparseSetup {
  pipeline::SparseOptions options;
  std::string predictor;  // all, gate, read-gate, low-rank, sketch
  std::vector<pipeline::LowRankRef> low_rank;
  bool relu = false;
  pipeline::SketchFile sketch = {};
  pipeline::GateFile gates = {};
};

std::unique_ptr<model::Ffn> make_sparse(pipeline::NeuronFile file, const SparseSetup& setup,
                                        const model::ModelDesc& desc, const kernels::Kernels& k,
                                        size_t max_rows);
nanobind::dict sparse_stats(const pipeline::SparseFfn& ffn);

}  // namespace hotset::bind
