// One loaded model with its threads and KV cache: sequences in, logits out.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "model/forward.h"

namespace hotset::model {

struct EngineOptions {
  size_t threads = 0;  // 0: all CPUs the process may use
  kernels::KvType kv_type = kernels::KvType::f16;
  size_t kv_tokens = 4096;
  size_t max_step_tokens = 512;
  LoadMode load = LoadMode::read;
  const char* isa = nullptr;
  bool pin = true;
  std::optional<io::ReaderOptions> embed_io = {};  // given: the embedding stays on the drive, and is read so
};

// Makes what computes the FFNs of a model whose weights hold none; max_rows = most tokens of a step.
using FfnFactory =
    std::function<std::unique_ptr<Ffn>(const ModelDesc&, const kernels::Kernels&, size_t max_rows)>;

struct EngineStats {
  size_t weight_bytes, kv_bytes_used, kv_bytes_reserved, scratch_bytes, bytes_per_token;
  double load_seconds;
};

// Not for use by two threads at once, except cancel().
class Engine {
 public:
  // Throws InvalidArgument, InvalidWeight, IoError, OutOfMemory, UnsupportedIsa.
  Engine(ModelDesc desc, const std::vector<TensorRef>& tensors, const std::vector<FileChecksums>& checksums,
         const EngineOptions& options, const FfnFactory& make_ffn = {});

  KvCache& kv() { return *kv_; }
  Record& record() { return record_; }
  Ffn* ffn() { return ffn_.get(); }  // null where the weights hold the FFNs
  const Ffn* ffn() const { return ffn_.get(); }
  const ModelDesc& desc() const { return desc_; }
  const kernels::Kernels& kernels() const { return k_; }
  size_t threads() const { return pool_->size(); }
  void set_threads(size_t threads);
  // From the next step on; floors.product by neuron in the order of the weights. Throws InvalidArgument.
  void set_ffn_floor(size_t layer, FfnFloor floor);

  // Appends counts[i] tokens to seqs[i] and computes the logits that `want` asks for; see _core.pyi. Nothing
  // is appended if it throws. `poll` is called between layers, at most every 50 ms, and may throw.
  size_t step(std::span<const int32_t> seqs, std::span<const int32_t> counts, std::span<const int32_t> tokens,
              std::span<const uint8_t> want, std::span<const int64_t> rope_lengths,
              const std::function<void()>& poll, bool draft = false);

  Rows logits() const { return forward_->logits(); }
  size_t logit_rows() const { return rows_; }
  std::span<const float> logits(size_t row) const;  // throws InvalidArgument
  float logprob(size_t row, int32_t token) const;   // log softmax(logits[row])[token]
  void token_logprobs(std::span<const int32_t> targets, std::span<float> out);
  void cancel() { cancelled_ = true; }
  void warm() const { weights_.touch(); }
  EngineStats stats() const;

 private:
  Batch make_batch(std::span<const int32_t> seqs, std::span<const int32_t> counts,
                   std::span<const int32_t> tokens, std::span<const uint8_t> want,
                   std::span<const int64_t> rope_lengths) const;
  void make_forward(size_t threads);

  ModelDesc desc_;
  EngineOptions options_;
  const kernels::Kernels& k_;
  double load_seconds_ = 0;
  Weights weights_;
  std::unique_ptr<EmbeddingFile> embedding_;  // null where the weights hold it
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<Ffn> ffn_;
  Record record_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Forward> forward_;
  size_t rows_ = 0;
  std::atomic<bool> cancelled_ = false;
};

}  // namespace hotset::model
