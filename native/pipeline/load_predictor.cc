#include "pipeline/load_predictor.h"

#include <algorithm>
#include <string>

#include "base/crc32c.h"
#include "base/error.h"
#include "pipeline/layer_stream.h"
#include "quant/sketch.h"

namespace hotset::pipeline {
namespace {

using model::Matrix;
using quant::Format;

constexpr size_t kPiece = 512, kRing = 3;  // neurons; pieces in flight

void take_gates(NeuronFile& file, size_t layer, const LayerStream::Piece& piece, const kernels::Kernels& k,
                uint8_t* matrix) {
  const auto interleave =
      file.layout.format == Format::q4_0 ? k.interleave_neurons_q4_0 : k.interleave_neurons_q8_0;
  const size_t row_bytes = quant::row_block_bytes(file.layout.format, file.layout.hidden);
  for (size_t i = 0; i < piece.count; i += quant::kRowBlock) {
    const size_t n = std::min(quant::kRowBlock, piece.count - i);
    const uint8_t* gates[quant::kRowBlock];
    for (size_t j = 0; j < n; ++j) {
      const uint8_t* bundle = piece.data + (i + j) * file.layout.stride;
      check_bundle(file, layer, piece.first + i + j, bundle, file.layout.bytes(),
                   file.crc32c[layer][piece.first + i + j]);
      file.crc32c_no_gate[layer][piece.first + i + j] = crc32c(bundle, file.layout.gate_offset());
      gates[j] = bundle + file.layout.gate_offset();
    }
    interleave(gates, n, file.layout.hidden, matrix + (piece.first + i) / quant::kRowBlock * row_bytes);
  }
}

Matrix read_matrix(const model::TensorRef& t, predictor::Memory& memory) {
  const size_t rows = static_cast<size_t>(t.rows), cols = static_cast<size_t>(t.cols);
  if (t.cols <= 0 || t.rows <= 0 || t.bytes != quant::packed_bytes(t.format, rows, cols))
    throw InvalidArgument("predictor '" + t.role + "' of layer " + std::to_string(t.layer) + " is " +
                          std::to_string(t.bytes) + " bytes, which its shape and format do not give");
  memory.emplace_back(t.bytes);
  io::read_all(t.path, t.offset, {memory.back().data(), t.bytes});
  return {memory.back().data(), t.format, rows, cols};
}

}  // namespace

std::unique_ptr<predictor::Predictor> load_gates(NeuronFile& file, const io::ReaderOptions& io,
                                                 const kernels::Kernels& k) {
  if (!file.layout.gated) throw InvalidArgument("a plain FFN has no gate to predict with");
  LayerStream stream(file.bundles(), std::vector<uint32_t>(file.layers(), 0), kPiece, kRing, io);
  file.crc32c_no_gate.assign(file.layers(), std::vector<uint32_t>(file.neurons));
  std::vector<Matrix> gates;
  predictor::Memory memory;
  for (size_t layer = 0; layer < file.layers(); ++layer) {
    const Matrix shape{nullptr, file.layout.format, file.neurons, file.layout.hidden};
    memory.emplace_back(shape.bytes());
    for (size_t first = 0; first < file.neurons;) {
      const auto piece = stream.next(layer, first);
      take_gates(file, layer, piece, k, memory.back().data());
      first += piece.count;
    }
    gates.push_back({memory.back().data(), shape.format, shape.rows, shape.cols});
  }
  return predictor::make_gate(std::move(gates), std::move(memory), k);
}

std::unique_ptr<predictor::Predictor> load_low_rank(const std::vector<LowRankRef>& layers, bool relu,
                                                    size_t max_rows, const kernels::Kernels& k) {
  std::vector<predictor::LowRank> maps;
  predictor::Memory memory;
  for (const LowRankRef& l : layers) {
    maps.push_back({read_matrix(l.down, memory), read_matrix(l.up, memory)});
    if (maps.back().up.cols != maps.back().down.rows)
      throw InvalidArgument("predictor of layer " + std::to_string(l.down.layer) + ": rank " +
                            std::to_string(maps.back().down.rows) + " meets rank " +
                            std::to_string(maps.back().up.cols));
  }
  return predictor::make_low_rank(std::move(maps), std::move(memory), relu, max_rows, k);
}

std::unique_ptr<predictor::Predictor> load_sketch(const SketchFile& file, const model::ModelDesc& desc,
                                                  const std::vector<float>& keep, const kernels::Kernels& k) {
  if (file.bits != 2 && file.bits != 3)
    throw InvalidArgument("sketches have 2 or 3 bits, not " + std::to_string(file.bits));
  if (file.layers.size() != desc.layers.size() || keep.size() != desc.layers.size())
    throw InvalidArgument(std::to_string(file.layers.size()) + " sketches for " +
                          std::to_string(desc.layers.size()) + " layers");
  const predictor::SketchShape shape{file.bits, static_cast<size_t>(desc.ffn),
                                     static_cast<size_t>(desc.hidden)};
  const size_t matrix = shape.neurons * quant::sketch_vector_bytes(shape.bits, shape.hidden);
  std::vector<predictor::SketchLayer> layers;
  predictor::Memory memory;
  const auto read = [&](uint64_t offset, size_t bytes) {
    memory.emplace_back(bytes);
    io::read_all(file.path, offset, {memory.back().data(), bytes});
    return memory.back().data();
  };
  for (const SketchFile::Layer& l : file.layers) {
    const uint8_t* gate = desc.gated ? read(l.gate, matrix) : nullptr;
    const uint8_t* up = read(l.up, matrix);
    const auto* v = reinterpret_cast<const float*>(read(l.vectors, 6 * shape.neurons * sizeof(float)));
    const size_t n = shape.neurons;
    layers.push_back({gate, up, v, v + n, v + 2 * n, v + 3 * n, v + 4 * n, v + 5 * n, keep[layers.size()]});
  }
  return predictor::make_sketch(shape, std::move(layers), std::move(memory), desc, k);
}

}  // namespace hotset::pipeline
