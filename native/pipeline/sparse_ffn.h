// FFNs whose neurons are mostly on the drive: predict, read what is missing, compute what is in memory
// meanwhile.
//
// A step of few tokens goes through a layer like this: score the neurons; those worth computing that are in
// memory form one list, those that are not are read into the cache; gate and up of the list are computed
// while the reads run (up where the gate is not zero), then those of what has arrived, while the rest still
// comes; at last down where the product is not zero, all neurons in store order. So every sum has one order,
// and a result depends neither on what was in memory nor on threads or the drive. A predictor that looks a
// layer ahead is given the input of the layer before, so that the reads have all of that layer and the
// attention in between to arrive. Many tokens (a prompt) use nearly all neurons: all are computed, dense,
// streamed from the drive in file order. Sources: PowerInfer-2 (arXiv:2406.06282), section 4; looking ahead:
// Deja Vu (arXiv:2310.17157), section 4.3.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/neuron_cache.h"
#include "io/reader.h"
#include "model/ffn.h"
#include "model/lane_rows.h"
#include "pipeline/dense_pass.h"
#include "pipeline/down_sums.h"
#include "pipeline/layer_stream.h"
#include "pipeline/neuron_fetch.h"
#include "pipeline/neuron_file.h"
#include "pipeline/products.h"
#include "predictor/predictor.h"

namespace hotset::pipeline {

struct SparseOptions {
  std::vector<uint32_t> hot;  // [layers] neurons that stay in memory
  size_t cold_slots = 0;      // neurons in the cold cache, all layers together
  std::string policy = "clock";
  // [layers] least score of a neuron in memory, and of a missing one, to be computed. Unused without a
  // predictor.
  std::vector<float> keep, fetch;
  // Most missing neurons of a layer for which there are places even if few cold slots are free; where the
  // predictor is no exact one, further ones are skipped.
  size_t spill = SIZE_MAX;
  bool draft_only = false;  // the predictor chooses neurons for drafts alone; all else is computed dense
  bool ahead =
      false;  // the predictor of a layer is given the input of the layer before, but that of the first
  bool overlap = true;  // false: a layer's reads are waited for before any of its neurons is computed
  io::ReaderOptions io;
};

struct SparseCounters {
  uint64_t layers = 0;      // passes of few tokens through a layer
  uint64_t candidates = 0;  // neurons computed at least in part
  uint64_t active = 0;      // with a product other than zero
  uint64_t missed = 0;      // candidates that had to be read
  uint64_t skipped = 0;     // missing ones scored between keep and fetch, or without a place
  uint64_t reads = 0, bytes_read = 0;
  double stall_seconds = 0;  // waiting for the drive with nothing to compute
};

class SparseFfn : public model::Ffn {
 public:
  // predictor null: all neurons are candidates. Reads the hot neurons. max_rows: most tokens of a step.
  SparseFfn(const model::ModelDesc& desc, NeuronFile file, SparseOptions options,
            std::unique_ptr<predictor::Predictor> predictor, const kernels::Kernels& k, size_t max_rows);

  void run(size_t layer, const model::Input& in, ThreadPool& pool, model::Rows y, model::Record& record,
           bool draft) override;

  // Between two steps: gives up cold slots, but none without which neurons of a layer might find no place.
  // Returns the bytes that go back to the system: slots that no neuron was ever read into have none.
  size_t shrink_cold(size_t slots);

  SparseCounters counters() const;
  const cache::NeuronCache& cache() const { return cache_; }
  size_t slot_bytes() const { return held_bytes_; }
  size_t bytes() const;  // of cache, predictor and buffers
  static constexpr size_t kMostSparseRows = 8;
  static constexpr size_t kPieceNeurons = kernels::kSumWindow;  // of a prompt's stream: 3.7 MB at hidden 4096

 private:
  struct Neuron {
    uint32_t index;
    const uint8_t* bundle;
  };
  struct List {
    std::vector<Neuron> neurons;  // in store order
    std::vector<float> products;  // [rows][neurons]
  };
  // Neurons of a layer that a step computes: what was in memory when they were chosen, and what is read.
  struct Chosen {
    size_t layer = kNoLayer;
    List present, coming;
    size_t spilled = 0;
  };
  // Reads that the calling thread sends before the others compute, and between two chunks of its own.
  static constexpr size_t kFirstReads = 16, kMoreReads = 16;
  static constexpr size_t kNoLayer = SIZE_MAX;
  static constexpr size_t kWarmRows =
      8;  // of a prompt, whose neurons are kept: three of four of a token's were used in the last five
  void check_gates() const;
  void load_hot();
  void run_sparse(size_t layer, const model::Input& in, ThreadPool& pool, model::Rows y);
  void step(size_t layer, const model::Input& in, ThreadPool& pool, model::Rows y);
  // Looking ahead, two layers are under way at a time.
  size_t turn(size_t layer) const { return options_.ahead ? layer % 2 : 0; }
  Chosen& chosen(size_t layer) { return chosen_[turn(layer)]; }
  void choose(size_t layer, const model::Input& in, ThreadPool& pool);
  const float* best_scores(size_t rows);
  std::span<const uint32_t> worth_computing(const float* scores, float keep);
  void consider(Chosen& c, uint32_t neuron, float score);
  uint8_t* place(Chosen& c, uint32_t neuron);
  void request(Chosen& c);
  void drop_unused();
  void abandon();
  void read_on();
  void compute(size_t layer, List& list, size_t rows, ThreadPool& pool);
  void compute_arrivals(size_t layer, List& list, size_t rows, ThreadPool& pool);
  void compute_arrived(size_t layer, List& list, std::span<const uint32_t> arrived, size_t rows,
                       Products::Scratch& scratch);
  void compute_chunk(size_t layer, std::span<const Neuron> neurons, size_t rows, Products::Scratch& scratch,
                     float* products, size_t ld);
  void check(size_t layer, std::span<const Neuron> neurons) const;
  void record(size_t layer, const List& list, size_t rows);
  void sum_down(const Chosen& c, size_t rows, ThreadPool& pool, model::Rows y);
  void warm(size_t layer, const LayerStream::Piece& piece, size_t hot, size_t rows, size_t& room);
  void run_dense(size_t layer, const model::Input& in, ThreadPool& pool, model::Rows y);
  void pass(size_t layer, const model::Input& in, ThreadPool& pool, model::Rows y);
  void load_piece(size_t layer, const LayerStream::Piece& piece, uint8_t* to);

  const model::ModelDesc& desc_;
  const kernels::Kernels& k_;
  NeuronFile file_;
  SparseOptions options_;
  std::unique_ptr<predictor::Predictor> predictor_;
  bool gate_known_;    // the predictor's scores are the values of the gates
  size_t used_bytes_;  // of a bundle that are needed then: all of it, or what stands before the gate
  size_t held_bytes_;  // those as direct I/O reads them: from one bundle in memory to the next
  cache::NeuronCache cache_;
  size_t spill_slots_;  // of a layer: places for reads when the whole cache is in use
  size_t least_slots_;  // cold ones that must stay beside them
  Buffer spill_;        // pages come on first use
  NeuronFetch fetch_;   // after what it reads into
  LayerStream stream_;

  // Work of the layer at hand and of the next one, reused.
  Buffer score_memory_;
  model::Rows scores_;
  Products products_;
  std::vector<Products::Scratch> scratch_;  // of each thread
  model::LaneRows lanes_;
  Chosen chosen_[2];
  std::vector<float> best_;      // [neurons]
  std::vector<uint32_t> worth_;  // [neurons]
  DownSums down_;
  DensePass dense_;
  model::Record* record_ = nullptr;  // of the running call
  SparseCounters counters_;
};

}  // namespace hotset::pipeline
