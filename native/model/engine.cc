#include "model/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>
#include <string>

#include "base/cpu.h"
#include "base/error.h"
#include "base/trace.h"

namespace hotset::model {
namespace {

using Clock = std::chrono::steady_clock;
using std::to_string;

void require(bool ok, const std::string& message) {
  if (!ok) throw InvalidArgument(message);
}

ModelDesc checked(ModelDesc d) {
  constexpr int64_t kMost = int64_t{1} << 31;
  for (const auto& [name, value] : {std::pair{"hidden", d.hidden},
                                    {"vocab", d.vocab},
                                    {"ffn", d.ffn},
                                    {"heads", d.heads},
                                    {"kv_heads", d.kv_heads},
                                    {"head_dim", d.head_dim},
                                    {"context", d.context}})
    require(value > 0 && value < kMost,
            std::string("model: ") + name + " is " + to_string(value) + ", wanted 1 to 2^31");
  require(d.heads % d.kv_heads == 0,
          "model: " + to_string(d.heads) + " heads cannot share " + to_string(d.kv_heads) + " KV heads");
  require(d.head_dim <= static_cast<int64_t>(kernels::kMaxHeadDim),
          "model: head_dim is " + to_string(d.head_dim) + ", at most " + to_string(kernels::kMaxHeadDim) +
              " is supported");
  require(!d.layers.empty(), "model: no layers");
  for (const LayerDesc& l : d.layers) {
    require(l.rope < static_cast<int>(d.ropes.size()),
            "model: a layer names rope " + to_string(l.rope) + " of " + to_string(d.ropes.size()));
    require(l.window >= 0, "model: window is " + to_string(l.window));
  }
  for (const RopeDesc& r : d.ropes)
    require(
        !r.inv_freq.empty() && 2 * r.inv_freq.size() <= static_cast<size_t>(d.head_dim),
        "model: RoPE turns " + to_string(2 * r.inv_freq.size()) + " of " + to_string(d.head_dim) + " values");
  return d;
}

std::unique_ptr<EmbeddingFile> open_embedding(const std::vector<TensorRef>& tensors,
                                              const std::vector<FileChecksums>& checksums,
                                              const EngineOptions& options) {
  if (!options.embed_io) return nullptr;
  const auto embed = std::ranges::find(tensors, "embed", &TensorRef::role);  // Weights has seen it
  const auto sums = std::ranges::find(checksums, embed->path, &FileChecksums::path);
  return std::make_unique<EmbeddingFile>(*embed, sums == checksums.end() ? nullptr : &*sums,
                                         *options.embed_io);
}

template <class Make>
auto timed(double& seconds, Make make) {
  const auto start = Clock::now();
  auto made = make();
  seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return made;
}

}  // namespace

Engine::Engine(ModelDesc desc, const std::vector<TensorRef>& tensors,
               const std::vector<FileChecksums>& checksums, const EngineOptions& options,
               const FfnFactory& make_ffn)
    : desc_(checked(std::move(desc))),
      options_(options),
      k_(kernels::select(options.isa)),
      weights_(timed(
          load_seconds_,
          [&] { return Weights(desc_, tensors, checksums, options.load, {!make_ffn, !options.embed_io}); })),
      embedding_(open_embedding(tensors, checksums, options)),
      kv_(std::make_unique<KvCache>(options.kv_type, desc_.layers.size(), desc_.kv_heads, desc_.head_dim,
                                    options.kv_tokens)) {
  require(options.max_step_tokens > 0, "max_step_tokens is 0, wanted at least 1");
  if (make_ffn) ffn_ = make_ffn(desc_, k_, options.max_step_tokens);
  record_.layers = desc_.layers.size();
  record_.ffn = static_cast<size_t>(desc_.ffn);
  record_.hidden = static_cast<size_t>(desc_.hidden);
  make_forward(options.threads);
}

void Engine::make_forward(size_t threads) {
  auto pool = std::make_unique<ThreadPool>(threads > 0 ? threads : allowed_cpus().size(), options_.pin);
  // Beside the old one: pages come on first use. If either is refused, both old ones stay.
  auto forward = std::make_unique<Forward>(desc_, weights_, embedding_.get(), *kv_, ffn_.get(), record_, k_,
                                           *pool, options_.max_step_tokens);
  forward_ = std::move(forward);  // before its pool goes
  pool_ = std::move(pool);
  rows_ = 0;
}

void Engine::set_threads(size_t threads) {
  if (threads != pool_->size()) make_forward(threads);
}

void Engine::set_ffn_floor(size_t layer, FfnFloor floor) {
  require(layer < desc_.layers.size(),
          "floor of layer " + to_string(layer) + ", the model has " + to_string(desc_.layers.size()));
  const size_t n = floor.product.size();
  require(n == 0 || n == static_cast<size_t>(desc_.ffn),
          to_string(n) + " floors for " + to_string(desc_.ffn) + " neurons");
  const auto fine = [](float x) { return x >= 0.0f && std::isfinite(x); };
  require(fine(floor.input) && fine(floor.gate) && std::ranges::all_of(floor.product, fine),
          "a floor of layer " + to_string(layer) + " is not a finite number from 0");
  desc_.layers[layer].floor = std::move(floor);
}

Batch Engine::make_batch(std::span<const int32_t> seqs, std::span<const int32_t> counts,
                         std::span<const int32_t> tokens, std::span<const uint8_t> want,
                         std::span<const int64_t> rope_lengths) const {
  require(!seqs.empty(), "step: no sequence given");
  require(counts.size() == seqs.size() && want.size() == seqs.size() &&
              (rope_lengths.empty() || rope_lengths.size() == seqs.size()),
          "step: seqs, counts, want and rope_lengths must have one entry per sequence");
  Batch batch;
  std::set<int32_t> seen;
  size_t row = 0;
  for (size_t i = 0; i < seqs.size(); ++i) {
    require(counts[i] > 0, "step: sequence " + to_string(seqs[i]) + " gets " + to_string(counts[i]) +
                               " tokens, wanted at least 1");
    require(seen.insert(seqs[i]).second, "step: sequence " + to_string(seqs[i]) + " is given twice");
    require(want[i] <= 2, "step: want is " + to_string(want[i]) + ", wanted 0, 1 or 2");
    const int64_t position = static_cast<int64_t>(kv_->length(seqs[i])), end = position + counts[i];
    require(end <= desc_.context, "step: sequence " + to_string(seqs[i]) + " would have " + to_string(end) +
                                      " tokens, the model's limit is " + to_string(desc_.context));
    batch.sequences.push_back({seqs[i], static_cast<Want>(want[i]), row, static_cast<size_t>(counts[i]),
                               position, rope_lengths.empty() ? end : std::max(end, rope_lengths[i])});
    row += counts[i];
  }
  require(row == tokens.size(), "step: counts add up to " + to_string(row) + ", but there are " +
                                    to_string(tokens.size()) + " tokens");
  require(row <= options_.max_step_tokens,
          "step: " + to_string(row) + " tokens, at most " + to_string(options_.max_step_tokens) + " at once");
  for (int32_t t : tokens)
    require(t >= 0 && t < desc_.vocab,
            "step: token " + to_string(t) + " is not in the vocabulary of " + to_string(desc_.vocab));
  batch.tokens.assign(tokens.begin(), tokens.end());
  return batch;
}

size_t Engine::step(std::span<const int32_t> seqs, std::span<const int32_t> counts,
                    std::span<const int32_t> tokens, std::span<const uint8_t> want,
                    std::span<const int64_t> rope_lengths, const std::function<void()>& poll, bool draft) {
  const trace::Span span("step");
  Batch batch = make_batch(seqs, counts, tokens, want, rope_lengths);
  batch.draft = draft;
  rows_ = 0;
  cancelled_ = false;
  auto last_poll = Clock::now();
  auto stop = [&] {
    if (poll && Clock::now() - last_poll > std::chrono::milliseconds(50)) {
      poll();
      last_poll = Clock::now();
    }
    return cancelled_.load();
  };
  try {
    for (const BatchSequence& s : batch.sequences) kv_->reserve(s.seq, s.count);
    record_.begin_step(batch.rows());
    forward_->run(batch, stop);
  } catch (...) {
    for (const BatchSequence& s : batch.sequences) kv_->rollback(s.seq);
    record_.abandon_step();
    throw;
  }
  for (const BatchSequence& s : batch.sequences) kv_->commit(s.seq, s.count);
  return rows_ = forward_->logit_rows();
}

std::span<const float> Engine::logits(size_t row) const {
  require(row < rows_,
          "row " + to_string(row) + " of the logits asked for, the last step has " + to_string(rows_));
  return {forward_->logits().row(row), static_cast<size_t>(desc_.vocab)};
}

float Engine::logprob(size_t row, int32_t token) const {
  require(token >= 0 && token < desc_.vocab,
          "token " + to_string(token) + " is not in the vocabulary of " + to_string(desc_.vocab));
  const auto x = logits(row);
  float max, lse;
  k_.logsumexp(x.data(), x.size(), &max, &lse);
  return x[token] - lse;
}

void Engine::token_logprobs(std::span<const int32_t> targets, std::span<float> out) {
  require(targets.size() == rows_,
          to_string(targets.size()) + " targets for " + to_string(rows_) + " rows of logits");
  pool_->parallel_for(rows_, 1, [&](size_t begin, size_t end, size_t) {
    for (size_t i = begin; i < end; ++i) out[i] = logprob(i, targets[i]);
  });
}

EngineStats Engine::stats() const {
  return {weights_.bytes(),          kv_->bytes_used(),          kv_->bytes_reserved(),
          forward_->scratch_bytes(), weights_.bytes_per_token(), load_seconds_};
}

}  // namespace hotset::model
