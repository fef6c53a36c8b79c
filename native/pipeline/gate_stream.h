// The exact predictor for models whose gates do not fit in memory: the gates of all neurons lie side by side
// in a file of their own and stream by in order, layer after layer and token after token, so the drive works
// on before the input of a layer is known. Of the bundles only those are read then whose gate is not zero.
// Source: PowerInfer-2 (arXiv:2406.06282), section 4.4, reads gates first of neurons that it predicted.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/reader.h"
#include "kernels/kernels.h"
#include "predictor/predictor.h"
#include "quant/neuron.h"

namespace hotset::pipeline {

struct GateFile {
  static constexpr size_t kPiece = 512;   // neurons in one piece of a layer
  static constexpr size_t kChecked = 16;  // neurons under one checksum

  std::string path;
  quant::Format format = quant::Format::q4_0;
  size_t hidden = 0, neurons = 0;                  // per layer
  size_t stride = 0;                               // bytes from one piece to the next
  std::vector<uint64_t> offset;                    // [layers] bytes from the start of the file to piece 0
  std::vector<std::vector<uint32_t>> crc32c;       // [layers][ceil(neurons / kChecked)] of the vectors
  std::vector<std::vector<uint32_t>> crc32c_rest;  // [layers][neurons] of the bundles without their gates

  size_t pieces() const { return (neurons + kPiece - 1) / kPiece; }
  size_t vector() const { return quant::vector_bytes(format, hidden); }
};

// Reads nothing before the first score(). Throws InvalidArgument, IoError; score(): IoError, InvalidWeight
// naming file, layer, neurons and offset.
std::unique_ptr<predictor::Predictor> make_gate_stream(GateFile file, const io::ReaderOptions& io,
                                                       const kernels::Kernels& k);

}  // namespace hotset::pipeline
