#include "pipeline/gate_stream.h"

#include <algorithm>

#include "base/crc32c.h"
#include "base/error.h"
#include "model/lane_rows.h"
#include "pipeline/layer_stream.h"

namespace hotset::pipeline {
namespace {

using model::Input;
using model::Rows;
using quant::Format;

// Pieces in memory: a layer's and what is with the drive meanwhile, so that it need not stop before the next
// layer is attended to; 38 MB in a 7B in 4 bits. More are of no use to a layer that takes longer.
constexpr size_t kMoreThanLayer = 4, kMostRing = 32;
constexpr size_t kMostRows = 8;

const GateFile& checked(const GateFile& file) {
  if (file.stride < GateFile::kPiece * file.vector() && file.stride < file.neurons * file.vector())
    throw InvalidArgument("gates: a stride of " + std::to_string(file.stride) + " bytes holds less than " +
                          std::to_string(GateFile::kPiece) + " of " + std::to_string(file.vector()));
  const size_t sums = (file.neurons + GateFile::kChecked - 1) / GateFile::kChecked;
  for (const auto& layer : file.crc32c)
    if (layer.size() != sums)
      throw InvalidArgument("gates: " + std::to_string(layer.size()) + " checksums of a layer, wanted " +
                            std::to_string(sums));
  if (file.crc32c.size() != file.offset.size())
    throw InvalidArgument("gates: checksums of " + std::to_string(file.crc32c.size()) + " layers for " +
                          std::to_string(file.offset.size()));
  return file;
}

class GateStream : public predictor::Predictor {
 public:
  GateStream(GateFile file, const io::ReaderOptions& io, const kernels::Kernels& k)
      : file_(std::move(file)),
        k_(k),
        dot_(file_.format == Format::q4_0 ? k.dot_neurons_q4_0 : k.dot_neurons_q8_0),
        lanes_(kMostRows, checked(file_).hidden),
        stream_({file_.path, file_.offset, file_.pieces(), file_.stride},
                std::vector<uint32_t>(file_.offset.size(), 0), 1,
                std::min(file_.pieces() + kMoreThanLayer, kMostRing), io, true) {}

  void score(size_t layer, const Input& in, ThreadPool& pool, Rows scores) override {
    try {
      pass(layer, in, pool, scores);
    } catch (...) {
      stream_.abandon();  // what did not match its checksum is read again
      throw;
    }
  }
  bool knows_gates() const override { return true; }
  Read read() const override { return {stream_.reads(), stream_.bytes_read(), stream_.stall_seconds()}; }
  void read_on() override { stream_.pump(); }
  size_t bytes() const override { return stream_.bytes() + lanes_.bytes(); }
  size_t bytes_per_token() const override { return file_.offset.size() * file_.neurons * file_.vector(); }

 private:
  struct Range {
    size_t begin, end;
  };

  void pass(size_t layer, const Input& in, ThreadPool& pool, Rows scores) {
    lanes_.shape(in.rows);
    for (size_t t = 0; t < in.rows; ++t) k_.quantize_lanes(in.f.row(t), lanes_.row(t));
    for (size_t p = 0; p < file_.pieces(); ++p) {
      const uint8_t* data = stream_.next(layer, p).data;
      const size_t first = p * GateFile::kPiece, count = std::min(GateFile::kPiece, file_.neurons - first);
      pool.parallel_for(count, GateFile::kChecked, [&](size_t begin, size_t end, size_t thread) {
        if (thread == 0) stream_.pump();
        for (size_t i = begin; i < end; i += GateFile::kChecked)
          few(layer, data, first, {i, std::min(i + GateFile::kChecked, end)}, in.rows, scores);
      });
    }
  }

  // Scores of the neurons [first + r.begin, first + r.end), which are checked just before, so that they are
  // in the core's cache.
  void few(size_t layer, const uint8_t* piece, size_t first, Range r, size_t rows, Rows scores) const {
    check(layer, piece, first, r);
    const size_t n = r.end - r.begin;
    const uint8_t* vectors[GateFile::kChecked];
    float out[GateFile::kChecked * kMostRows];
    for (size_t i = 0; i < n; ++i) vectors[i] = piece + (r.begin + i) * file_.vector();
    dot_(vectors, n, lanes_.row(0), rows, out);
    for (size_t t = 0; t < rows; ++t)
      for (size_t i = 0; i < n; ++i) scores.row(t)[first + r.begin + i] = out[i * rows + t];
  }

  void check(size_t layer, const uint8_t* piece, size_t first, Range r) const {
    const uint32_t wanted = file_.crc32c[layer][(first + r.begin) / GateFile::kChecked];
    const size_t at = r.begin * file_.vector(), bytes = (r.end - r.begin) * file_.vector();
    const uint32_t got = crc32c(piece + at, bytes);
    if (got == wanted) return;
    const uint64_t offset = file_.offset[layer] + first / GateFile::kPiece * file_.stride + at;
    throw InvalidWeight(file_.path + ": gates of neurons " + std::to_string(first + r.begin) + " to " +
                        std::to_string(first + r.end - 1) + " of layer " + std::to_string(layer) + " (" +
                        std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                        ") have checksum " + std::to_string(got) + ", wanted " + std::to_string(wanted) +
                        "; the file is damaged or the drive failed: make it again");
  }

  GateFile file_;
  const kernels::Kernels& k_;
  kernels::Kernels::DotNeurons dot_;
  model::LaneRows lanes_;
  LayerStream stream_;
};

}  // namespace

std::unique_ptr<predictor::Predictor> make_gate_stream(GateFile file, const io::ReaderOptions& io,
                                                       const kernels::Kernels& k) {
  return std::make_unique<GateStream>(std::move(file), io, k);
}

}  // namespace hotset::pipeline
