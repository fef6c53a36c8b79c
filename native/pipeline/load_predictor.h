// Predictors of a packed model from its files.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/reader.h"
#include "pipeline/neuron_file.h"
#include "predictor/matrix.h"
#include "predictor/sketch.h"

namespace hotset::pipeline {

// All gates, taken out of the bundles in one pass over the file, which fills file.crc32c_no_gate too. Throws
// IoError, InvalidWeight, OutOfMemory.
std::unique_ptr<predictor::Predictor> load_gates(NeuronFile& file, const io::ReaderOptions& io,
                                                 const kernels::Kernels& k);

// A published or trained map for each layer; `up` has a row for each neuron, in store order.
struct LowRankRef {
  model::TensorRef down, up;
};
std::unique_ptr<predictor::Predictor> load_low_rank(const std::vector<LowRankRef>& layers, bool relu,
                                                    size_t max_rows, const kernels::Kernels& k);

// Sketches of all layers in one file: where gate (0 in a plain FFN), up and [6][neurons] of f32 lie, what is
// to be added to gate and up, the lengths of down, the noise of gate and up, and what up adds at most.
struct SketchFile {
  std::string path;
  unsigned bits;
  struct Layer {
    uint64_t gate, up, vectors;
  };
  std::vector<Layer> layers;
};
// keep: of each layer the least score of a neuron that is computed. Throws IoError, OutOfMemory,
// InvalidArgument.
std::unique_ptr<predictor::Predictor> load_sketch(const SketchFile& file, const model::ModelDesc& desc,
                                                  const std::vector<float>& keep, const kernels::Kernels& k);

}  // namespace hotset::pipeline
