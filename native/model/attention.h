// Attention of one layer for a batch: norm and rotation of q and k, KV write, softmax(q k) v.
#pragma once

#include <vector>

#include "base/memory.h"
#include "base/thread_pool.h"
#include "model/activations.h"
#include "model/batch.h"
#include "model/kv_cache.h"
#include "model/row_parts.h"

namespace hotset::model {

// cos and sin of every row of a batch, for every RopeDesc of the model.
class RopeTables {
 public:
  explicit RopeTables(const ModelDesc& desc) : desc_(desc), tables_(desc.ropes.size()) {}
  void fill(const Batch& batch, ThreadPool& pool);
  size_t half(size_t rope) const { return desc_.ropes[rope].inv_freq.size(); }
  const float* cos(size_t rope, size_t row) const { return tables_[rope].data() + row * 2 * half(rope); }
  const float* sin(size_t rope, size_t row) const { return cos(rope, row) + half(rope); }

 private:
  void fill_row(size_t rope, size_t row, int64_t position, const std::vector<float>& inv_freq);
  const ModelDesc& desc_;
  std::vector<std::vector<float>> tables_;  // [rope][rows][2][half]
};

// Frequencies of `rope` for a sequence of `length` tokens: differ from inv_freq only for dynamic NTK beyond
// the original context. Source: transformers' `_compute_dynamic_ntk_parameters`.
std::vector<float> rope_frequencies(const RopeDesc& rope, int64_t length);

class Attention {
 public:
  Attention(const ModelDesc& desc, const kernels::Kernels& k, ThreadPool& pool, KvCache& kv);

  // Once for a batch, before its first layer.
  void begin(const Batch& batch) { make_tiles(batch); }
  // Norms and turns q and k and writes k and v to the cache. q [rows][heads * head_dim], k and v [rows]
  // [kv_heads * head_dim]: projections with bias, changed in place. The batch's pages must be reserved.
  void store(const Batch& batch, size_t layer, const LayerWeights& w, const RopeTables& ropes, Rows q, Rows k,
             Rows v, const Share& share);
  // out [rows][heads * head_dim], from the q of store(), which has ended for all rows.
  void attend(size_t layer, Rows q, Rows out, const Share& share);

 private:
  // Up to 16 queries that read the same keys: some heads of one GQA group, for some neighbouring tokens.
  struct Tile {
    const BatchSequence* seq;
    size_t kv_head, head, heads, token, tokens;
    size_t queries() const { return heads * tokens; }
  };
  struct State;  // softmax state of one tile in scratch memory

  void finish_projections(const BatchSequence& s, size_t token, size_t layer, const LayerWeights& w,
                          const RopeTables& ropes, Rows q, Rows k, Rows v);
  void norm_heads(const Vector& norm, size_t heads, float* x) const;
  void make_tiles(const Batch& batch);
  void load_queries(const Tile& t, int64_t window, Rows q, State& s) const;
  void attend_chunk(const Tile& t, size_t layer, size_t chunk, State& s) const;
  void store_output(const Tile& t, const State& s, Rows out) const;
  size_t chunks(const Tile& t) const;
  void run_tiles(size_t layer, int64_t window, Rows q, Rows out);
  void run_tile(const Tile& t, size_t layer, int64_t window, Rows q, Rows out, size_t thread);
  void run_split(size_t layer, int64_t window, Rows q, Rows out);

  const ModelDesc& desc_;
  const kernels::Kernels& k_;
  ThreadPool& pool_;
  KvCache& kv_;
  size_t hd_;  // padded head size
  std::vector<Tile> tiles_;
  std::vector<float> scratch_;  // one State per thread, twice
  std::vector<float> partial_;  // run_split: one State per tile and chunk
};

}  // namespace hotset::model
