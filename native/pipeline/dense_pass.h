// An FFN for any number of tokens in which every neuron is looked at: prompts, and the verification of
// drafts.
//
// The layer comes in pieces in store order, from memory and from the drive. Gates of a piece are computed for
// all tokens, up where a gate is not zero, and each token adds the down vectors of its non-zero products to
// sums that are carried from piece to piece. Nothing is repacked, and a token's result has the bits of the
// sparse path whose candidates are all neurons, whatever the other tokens and the threads, and whatever is
// hot.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/memory.h"
#include "model/ffn.h"
#include "model/lane_rows.h"
#include "pipeline/products.h"

namespace hotset::pipeline {

class DensePass {
 public:
  // desc, file and k outlive it. At most max_rows tokens, and pieces of at most max_piece neurons.
  DensePass(const model::ModelDesc& desc, const NeuronFile& file, const kernels::Kernels& k, size_t max_rows,
            size_t max_piece);

  // Neurons side by side in memory, `stride` bytes apart.
  struct Run {
    const uint8_t* data = nullptr;
    size_t stride = 0, count = 0;
  };
  // Neighbouring neurons of a layer, in one place or two. All of a layer but the last end at a multiple of
  // kSumWindow. gate: the layer's gates as a matrix where bundles are without them, else null.
  struct Piece {
    size_t layer, first;
    const model::Matrix* gate;
    Run before, behind;

    size_t count() const { return before.count + behind.count; }
    const uint8_t* bundle(size_t i) const {
      return i < before.count ? before.data + i * before.stride
                              : behind.data + (i - before.count) * behind.stride;
    }
  };
  // A layer is begin(), add() for all its neurons in order, end(); then y[t] is its output. The calling
  // thread runs `meanwhile` between its shares of add()'s work.
  void begin(const model::Input& in, bool gate_matrix, ThreadPool& pool, model::Rows y);
  void add(const Piece& piece, const model::Input& in, ThreadPool& pool, model::Rows y, model::Record& record,
           const std::function<void()>& meanwhile);
  void end(size_t rows, ThreadPool& pool, model::Rows y);
  // Neurons of the piece added last, counted from its first, whose product for a token was not zero.
  std::span<const uint16_t> active(size_t token) { return {index(token), active_[token]}; }
  size_t bytes() const { return lanes_.bytes() + product_memory_.size() + index_memory_.size(); }

 private:
  struct Scratch {
    Products::Scratch products;
    std::vector<float> gate;
    std::vector<const uint8_t*> bundles, next;
    std::vector<uint32_t> index;
  };
  void unit(const Piece& p, size_t begin, size_t count, const model::Input& in, Scratch& s);
  KnownGates gate_matrix(const Piece& p, size_t begin, size_t count, const model::Input& in, size_t first,
                         size_t tokens, Scratch& s) const;
  void gather(const Piece& p, size_t t, model::Record& record);
  void down(const Piece& p, size_t begin, size_t end, size_t rows, Scratch& s, model::Rows y);
  void down_vectors(const Piece& p, size_t t, std::vector<const uint8_t*>& out);
  uint16_t* index(size_t t) { return reinterpret_cast<uint16_t*>(index_memory_.data()) + t * max_piece_; }

  const model::ModelDesc& desc_;
  const NeuronFile& file_;
  const kernels::Kernels& k_;
  Products products_of_;
  size_t max_piece_;
  model::LaneRows lanes_;
  Buffer product_memory_, index_memory_;
  model::Rows products_;        // of a piece [rows][piece]; then those that are not zero, in order
  std::vector<size_t> active_;  // [rows] how many those are
  std::vector<Scratch> threads_;
};

}  // namespace hotset::pipeline
