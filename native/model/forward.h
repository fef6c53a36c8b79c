// The forward pass of any model that a ModelDesc describes.
#pragma once

#include <functional>
#include <vector>

#include "model/attention.h"
#include "model/embedding_file.h"
#include "model/ffn.h"
#include "model/linear.h"
#include "model/record.h"

namespace hotset::model {

// Holds the scratch memory for steps of up to `max_rows` tokens. One run at a time.
class Forward {
 public:
  // embedding: where the weights hold none; null otherwise. ffn: the same of the FFNs.
  Forward(const ModelDesc& desc, const Weights& weights, EmbeddingFile* embedding, KvCache& kv, Ffn* ffn,
          Record& record, const kernels::Kernels& k, ThreadPool& pool, size_t max_rows);

  // Computes the batch (its pages reserved) and returns logits [wanted rows][logits().ld], in input order.
  // `stop` is asked between layers; if it says true, Cancelled is thrown.
  void run(const Batch& batch, const std::function<bool()>& stop);

  Rows logits() const { return logits_; }
  size_t logit_rows() const { return logit_rows_; }
  size_t scratch_bytes() const;

 private:
  Rows rows(size_t cols);
  void embed(const Batch& batch);
  void shape(size_t rows);
  void run_layer(const Batch& batch, size_t layer, const RowParts& parts);
  // The stages of a layer: q, k and v into the cache; what attention adds to x; what the FFN adds to x.
  void project(const Batch& batch, size_t layer, const Share& share);
  void attention_block(const Batch& batch, size_t layer, const Share& share);
  void ffn_block(const Batch& batch, size_t layer, const Share& share);
  Input without_small(const Input& in, float floor, const Share& share);
  void dense_ffn(size_t layer, const Input& in, const Share& share);
  void outer_ffn(size_t layer, const Input& in, bool draft);
  void ffn_units(size_t layer, const Input& in, size_t begin, size_t end, const Share& share, float* scratch);
  void finish_ffn_rows(size_t layer, size_t tile, size_t t, size_t first, size_t count, float* up, float* h);
  void norm(const Vector& w, const Vector& b, const float* x, float* y) const;
  // xn = norm(x) (or x itself where there is no norm) of n rows.
  Input normed(const Vector& w, const Vector& b, size_t n, const Share& share);
  // x += post_norm(y) * residual_scale, where y was not added by the product already.
  void add_block(const Vector& post_norm, size_t n, const Share& share);
  bool adds_directly(const Vector& post_norm) const {
    return post_norm.empty() && desc_.residual_scale == 1.0f;
  }
  void head(const Batch& batch);

  const ModelDesc& desc_;
  const Weights& weights_;
  EmbeddingFile* embedding_;
  Ffn* ffn_;
  Record& record_;
  const kernels::Kernels& k_;
  ThreadPool& pool_;
  size_t max_rows_;
  Linear linear_;
  RopeTables ropes_;
  Attention attention_;
  std::vector<Buffer> memory_;
  Rows x_, xn_, y_, q_, kx_, vx_, attn_, h_, logits_;
  QuantizedRows xq_, attnq_, hq_;
  std::vector<std::vector<float>> ffn_scratch_;  // [threads][2][16 tokens][rows of a chunk]
  Buffer logit_memory_;
  size_t logit_rows_ = 0;
};

}  // namespace hotset::model
