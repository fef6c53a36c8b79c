// The neurons of a packed model on the drive: where each bundle lies, and what its bytes must be.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/reader.h"
#include "quant/neuron.h"

namespace hotset::pipeline {

// What streams by in order: of each layer `count` units, `stride` bytes apart.
struct Units {
  std::string path;
  std::vector<uint64_t> offset;  // [layers] bytes from the start of the file to the layer's first unit
  size_t count = 0, stride = 0;
};

struct NeuronFile {
  std::string path;
  quant::NeuronLayout layout;
  size_t neurons = 0;                         // per layer
  std::vector<uint64_t> offset;               // [layers] bytes from the start of the file to neuron 0
  std::vector<std::vector<uint32_t>> crc32c;  // [layers][neurons] of the layout.bytes() of each bundle
  // Biases of gate and up in store order, [layers][neurons]; empty where there are none.
  std::vector<std::vector<float>> gate_bias, up_bias;

  // The same of the bundles without their gates, [layers][neurons]; empty until they are known, from
  // load_gates() or a GateFile.
  std::vector<std::vector<uint32_t>> crc32c_no_gate;

  size_t layers() const { return offset.size(); }
  uint64_t position(size_t layer, size_t neuron) const { return offset[layer] + neuron * layout.stride; }
  Units bundles() const { return {path, offset, neurons, layout.stride}; }
};

// `io`, but buffered where direct reads want an alignment that the units do not have: a store packed on
// another drive. Throws IoError.
io::ReaderOptions options_for(const Units& units, io::ReaderOptions io);

// Throws InvalidWeight naming file, layer, neuron and offset unless crc32c(bundle, bytes) is `wanted`.
void check_bundle(const NeuronFile& file, size_t layer, size_t neuron, const uint8_t* bundle, size_t bytes,
                  uint32_t wanted);

}  // namespace hotset::pipeline
