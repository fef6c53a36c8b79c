#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/trace.h"
#include "model/ffn_floor.h"
#include "quant/codec.h"

namespace hotset::model {

using kernels::kTile;
using quant::kColBlock;
using quant::kRowBlock;

namespace {
// FFN rows are cut in units of 64, so that the thread that made them can quantize whole groups for `down`.
constexpr size_t kUnitBlocks = kColBlock / kRowBlock;

// Then nothing reads what goes into them but as int8.
bool downs_quantized(const Weights& weights) {
  return std::all_of(weights.layers.begin(), weights.layers.end(),
                     [](const LayerWeights& w) { return quant::is_quantized(w.down.format); });
}
}  // namespace

Forward::Forward(const ModelDesc& desc, const Weights& weights, EmbeddingFile* embedding, KvCache& kv,
                 Ffn* ffn, Record& record, const kernels::Kernels& k, ThreadPool& pool, size_t max_rows)
    : desc_(desc),
      weights_(weights),
      embedding_(embedding),
      ffn_(ffn),
      record_(record),
      k_(k),
      pool_(pool),
      max_rows_(max_rows),
      linear_(k, pool),
      ropes_(desc),
      attention_(desc, k, pool, kv),
      xq_(max_rows, desc.hidden),
      attnq_(max_rows, desc.heads * desc.head_dim),
      hq_(ffn ? 0 : max_rows, desc.ffn),
      ffn_scratch_(pool.size()) {
  x_ = rows(desc.hidden), xn_ = rows(desc.hidden), y_ = rows(desc.hidden);
  q_ = rows(desc.heads * desc.head_dim), attn_ = rows(desc.heads * desc.head_dim);
  kx_ = rows(desc.kv_heads * desc.head_dim), vx_ = rows(desc.kv_heads * desc.head_dim);
  if (!ffn && !downs_quantized(weights)) h_ = rows(desc.ffn);
}

Rows Forward::rows(size_t cols) {
  const size_t ld = pad_to(cols, kColBlock);
  memory_.emplace_back(pad_to(max_rows_, kTile) * ld * sizeof(float));
  return {reinterpret_cast<float*>(memory_.back().data()), ld};
}

size_t Forward::scratch_bytes() const {
  size_t n = xq_.bytes() + attnq_.bytes() + hq_.bytes() + logit_memory_.size();
  for (const Buffer& b : memory_) n += b.size();
  return n;
}

void Forward::run(const Batch& batch, const std::function<bool()>& stop) {
  {
    const trace::Span span("embed");
    ropes_.fill(batch, pool_);
    embed(batch);
  }
  shape(batch.rows());
  attention_.begin(batch);
  const RowParts parts(batch.rows(), pool_);
  for (size_t layer = 0; layer < desc_.layers.size(); ++layer) {
    if (stop && stop()) throw Cancelled("step cancelled before layer " + std::to_string(layer));
    run_layer(batch, layer, parts);
  }
  head(batch);
}

void Forward::shape(size_t rows) {
  xq_.shape(rows, desc_.hidden);
  attnq_.shape(rows, desc_.heads * desc_.head_dim);
  hq_.shape(rows, desc_.ffn);
}

// Where rows are shared out, threads meet twice a layer: no token attends before all keys are there.
void Forward::run_layer(const Batch& batch, size_t layer, const RowParts& parts) {
  parts.each(pool_, [&](const Share& share) { project(batch, layer, share); });
  const LayerWeights& w = weights_.layers[layer];
  parts.each(pool_, [&](const Share& share) {
    // While x is still what attention read. Where the FFN has no norm of its own, xn stays attention's.
    if (desc_.parallel) normed(w.ffn_norm, w.ffn_norm_bias, batch.rows(), share);
    attention_block(batch, layer, share);
    if (!ffn_) ffn_block(batch, layer, share);
  });
  if (ffn_) ffn_block(batch, layer, {});
}

void Forward::embed(const Batch& batch) {
  const size_t hidden = desc_.hidden;
  if (embedding_) embedding_->rows(batch.tokens, pool_, x_);
  for (const BatchSequence& s : batch.sequences)
    pool_.parallel_for(s.count, 16, [&](size_t begin, size_t end, size_t) {
      for (size_t i = begin; i < end; ++i) {
        float* x = x_.row(s.first_row + i);
        const Matrix& e = weights_.embed;
        if (!embedding_) quant::decode_row(e.format, e.data, batch.tokens[s.first_row + i], e.cols, x);
        if (desc_.embedding_scale != 1.0f)
          for (size_t j = 0; j < hidden; ++j) x[j] *= desc_.embedding_scale;
        if (desc_.position_offset < 0) continue;
        float* position = y_.row(s.first_row + i);
        const Matrix& p = weights_.position;
        quant::decode_row(p.format, p.data, s.position + i + desc_.position_offset, p.cols, position);
        k_.add(position, hidden, x);
      }
    });
}

void Forward::norm(const Vector& w, const Vector& b, const float* x, float* y) const {
  const float* weight = w.empty() ? nullptr : w.data();
  if (desc_.norm == NormKind::rms)
    k_.rms_norm(x, weight, desc_.norm_eps, desc_.hidden, y);
  else
    k_.layer_norm(x, weight, b.empty() ? nullptr : b.data(), desc_.norm_eps, desc_.hidden, y);
}

Input Forward::normed(const Vector& w, const Vector& b, size_t n, const Share& share) {
  if (w.empty()) return {x_, &xq_, n};
  each_row(n, share, pool_, [&](size_t t) { norm(w, b, x_.row(t), xn_.row(t)); });
  return {xn_, &xq_, n};
}

void Forward::add_block(const Vector& post_norm, size_t n, const Share& share) {
  if (adds_directly(post_norm)) return;
  each_row(n, share, pool_, [&](size_t t) {
    float* y = y_.row(t);
    if (!post_norm.empty()) norm(post_norm, {}, y, y);
    if (desc_.residual_scale != 1.0f)
      for (int64_t j = 0; j < desc_.hidden; ++j) y[j] *= desc_.residual_scale;
    k_.add(y, desc_.hidden, x_.row(t));
  });
}

void Forward::project(const Batch& batch, size_t layer, const Share& share) {
  const trace::Span span("attention", static_cast<uint32_t>(layer));
  const LayerWeights& w = weights_.layers[layer];
  const Input in = normed(w.attn_norm, w.attn_norm_bias, batch.rows(), share);
  linear_.prepare(in, desc_.hidden, {&w.q, &w.k, &w.v}, share);
  const Product qkv[] = {{&w.q, &w.q_bias, q_}, {&w.k, &w.k_bias, kx_}, {&w.v, &w.v_bias, vx_}};
  linear_.run(in, qkv, share);
  attention_.store(batch, layer, w, ropes_, q_, kx_, vx_, share);
}

void Forward::attention_block(const Batch& batch, size_t layer, const Share& share) {
  const trace::Span span("attention", static_cast<uint32_t>(layer));
  const LayerWeights& w = weights_.layers[layer];
  attention_.attend(layer, q_, attn_, share);
  const Input out{attn_, &attnq_, batch.rows()};
  linear_.prepare(out, desc_.heads * desc_.head_dim, {&w.o}, share);
  const Product o[] = {{&w.o, &w.o_bias, y_, adds_directly(w.attn_post_norm) ? &x_ : nullptr}};
  linear_.run(out, o, share);
  add_block(w.attn_post_norm, batch.rows(), share);
}

void Forward::ffn_block(const Batch& batch, size_t layer, const Share& share) {
  const trace::Span span("ffn", static_cast<uint32_t>(layer));
  const size_t n = batch.rows();
  const LayerWeights& w = weights_.layers[layer];
  Input in = desc_.parallel ? Input{xn_, &xq_, n} : normed(w.ffn_norm, w.ffn_norm_bias, n, share);
  if (record_.inputs)
    for (size_t t = share.begin_row(); t < share.end_row(n); ++t) record_.keep_input(t, layer, in.f.row(t));
  if (const float floor = desc_.layers[layer].floor.input; floor > 0.0f) in = without_small(in, floor, share);
  ffn_ ? outer_ffn(layer, in, batch.draft) : dense_ffn(layer, in, share);
  add_block(w.ffn_post_norm, n, share);
}

// The rows in xn, with 0 for what is below the floor.
Input Forward::without_small(const Input& in, float floor, const Share& share) {
  for (size_t t = share.begin_row(); t < share.end_row(in.rows); ++t) {
    if (in.f.data != xn_.data) std::memcpy(xn_.row(t), in.f.row(t), desc_.hidden * sizeof(float));
    drop_below(floor, desc_.hidden, xn_.row(t));
  }
  return {xn_, in.q, in.rows};
}

void Forward::outer_ffn(size_t layer, const Input& in, bool draft) {
  const LayerWeights& w = weights_.layers[layer];
  ffn_->run(layer, in, pool_, y_, record_, draft);
  const bool direct = adds_directly(w.ffn_post_norm);
  for (size_t t = 0; t < in.rows; ++t) {
    if (!w.down_bias.empty()) k_.add(w.down_bias.data(), desc_.hidden, y_.row(t));
    if (direct) k_.add(y_.row(t), desc_.hidden, x_.row(t));
  }
}

void Forward::dense_ffn(size_t layer, const Input& in, const Share& share) {
  const LayerWeights& w = weights_.layers[layer];
  linear_.prepare(in, desc_.hidden, {&w.up, &w.gate}, share);
  const size_t units = pad_to(w.up.row_blocks(), kUnitBlocks) / kUnitBlocks;
  const size_t unit_bytes = kUnitBlocks * w.up.row_block_bytes() * (desc_.gated ? 2 : 1);
  const size_t results = kColBlock * (desc_.gated ? 2 : 1);
  const size_t chunk = chunk_blocks(units, {unit_bytes, results}, in.rows, share.alone() ? 1 : pool_.size());
  const auto compute = [&](size_t begin, size_t end, size_t thread) {
    std::vector<float>& scratch = ffn_scratch_[thread];
    scratch.resize(std::max(scratch.size(), 2 * kTile * chunk * kColBlock));
    ffn_units(layer, in, begin, end, share, scratch.data());
  };
  if (share.alone())
    for (size_t begin = 0; begin < units; begin += chunk)
      compute(begin, std::min(units, begin + chunk), share.thread);
  else
    pool_.parallel_for(units, chunk, compute);
  const Input out{h_, &hq_, in.rows};
  const Product down[] = {{&w.down, &w.down_bias, y_, adds_directly(w.ffn_post_norm) ? &x_ : nullptr}};
  linear_.run(out, down, share);
}

// h = f(gate x) * h(up x) for FFN rows [64 * begin, 64 * end), as int8 alone where `down` reads that.
// scratch: [2] [16 tokens][those rows].
void Forward::ffn_units(size_t layer, const Input& in, size_t begin, size_t end, const Share& share,
                        float* scratch) {
  const LayerWeights& w = weights_.layers[layer];
  const size_t block = begin * kUnitBlocks, blocks = std::min(end * kUnitBlocks, w.up.row_blocks()) - block;
  const size_t first = begin * kColBlock, width = blocks * kRowBlock;
  const size_t count = std::min(end * kColBlock, w.up.rows) - first;
  const bool quantized_down = quant::is_quantized(w.down.format);
  float* up = scratch + kTile * width;
  for (size_t i = share.first; i * kTile < share.end_row(in.rows); ++i) {
    const Rows h = quantized_down ? Rows{scratch, width} : Rows{h_.row(i * kTile) + first, h_.ld};
    linear_.tile(desc_.gated ? w.gate : w.up, block, blocks, in, i, h.data, static_cast<ptrdiff_t>(h.ld));
    if (desc_.gated) linear_.tile(w.up, block, blocks, in, i, up, static_cast<ptrdiff_t>(width));
    const size_t n = std::min(kTile, in.rows - i * kTile);
    for (size_t t = 0; t < n; ++t) finish_ffn_rows(layer, i, t, first, count, up + t * width, h.row(t));
  }
}

void Forward::finish_ffn_rows(size_t layer, size_t tile, size_t t, size_t first, size_t count, float* up,
                              float* h) {
  const LayerWeights& w = weights_.layers[layer];
  if (desc_.gated) {
    if (!w.gate_bias.empty()) k_.add(w.gate_bias.data() + first, count, h);
    if (!w.up_bias.empty()) k_.add(w.up_bias.data() + first, count, up);
  } else if (!w.up_bias.empty()) {
    k_.add(w.up_bias.data() + first, count, h);
  }
  finish_products(k_, desc_, layer, first, count, up, h);
  if (record_.activations) record_.mark_all(tile * kTile + t, layer, first, h, count);
  if (quant::is_quantized(w.down.format))
    k_.quantize(h, count, from_group(hq_.tile(tile), first / quant::kGroup), t);
}

void Forward::head(const Batch& batch) {
  const trace::Span span("head");
  std::vector<size_t> wanted;
  for (const BatchSequence& s : batch.sequences)
    for (size_t i = s.want == Want::all ? 0 : s.count - 1; s.want != Want::none && i < s.count; ++i)
      wanted.push_back(s.first_row + i);
  logit_rows_ = wanted.size();
  if (wanted.empty()) return;

  for (size_t i = 0; i < wanted.size(); ++i) {  // wanted is increasing, so rows move only down
    if (!weights_.final_norm.empty())
      norm(weights_.final_norm, weights_.final_norm_bias, x_.row(wanted[i]), xn_.row(i));
    else
      std::memcpy(xn_.row(i), x_.row(wanted[i]), desc_.hidden * sizeof(float));
  }
  const size_t ld = pad_to(desc_.vocab, kRowBlock), bytes = pad_to(wanted.size(), kTile) * ld * sizeof(float);
  if (bytes > logit_memory_.size()) logit_memory_ = Buffer(bytes);
  logits_ = {reinterpret_cast<float*>(logit_memory_.data()), ld};

  const Input in{xn_, &xq_, wanted.size()};
  linear_.prepare(in, desc_.hidden, {&weights_.head});
  const Product out[] = {{&weights_.head, &weights_.head_bias, logits_}};
  linear_.run(in, out);
  if (desc_.logit_scale == 1.0f && desc_.logit_softcap == 0.0f) return;
  const float cap = desc_.logit_softcap;
  for (size_t i = 0; i < wanted.size(); ++i)
    for (int64_t j = 0; j < desc_.vocab; ++j) {
      float& z = logits_.row(i)[j];
      z *= desc_.logit_scale;
      if (cap != 0.0f) z = cap * std::tanh(z / cap);
    }
}

}  // namespace hotset::model
