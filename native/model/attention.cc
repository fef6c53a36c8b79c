#include "model/attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/trace.h"

namespace hotset::model {

using kernels::kPage;
using kernels::kTile;

namespace {
// Contexts are cut into chunks, always at the same places, so that the sum does not depend on who computes
// it: four short ones, so that threads have something to share, then long ones, as each has its own state to
// merge.
constexpr size_t kShortPages = 4, kLongPages = 16;
size_t first_page(size_t chunk) {
  return chunk * kShortPages <= kLongPages ? chunk * kShortPages : (chunk - 3) * kLongPages;
}
size_t chunks_of(size_t pages) {
  return pages <= kLongPages ? pad_to(pages, kShortPages) / kShortPages
                             : pad_to(pages, kLongPages) / kLongPages + 3;
}
}  // namespace

std::vector<float> rope_frequencies(const RopeDesc& rope, int64_t length) {
  if (rope.dynamic_factor == 0.0f || length <= rope.original_context) return rope.inv_freq;
  const double dim = 2.0 * static_cast<double>(rope.inv_freq.size()), factor = rope.dynamic_factor;
  const double growth =
      factor * static_cast<double>(length) / static_cast<double>(rope.original_context) - (factor - 1);
  const double base = rope.dynamic_base * std::pow(growth, dim / (dim - 2));
  std::vector<float> f(rope.inv_freq.size());
  for (size_t i = 0; i < f.size(); ++i)
    f[i] = static_cast<float>(1.0 / std::pow(base, 2.0 * static_cast<double>(i) / dim));
  return f;
}

void RopeTables::fill(const Batch& batch, ThreadPool& pool) {
  for (size_t r = 0; r < tables_.size(); ++r) {
    tables_[r].resize(std::max(tables_[r].size(), batch.rows() * 2 * half(r)));
    for (const BatchSequence& s : batch.sequences) {
      const std::vector<float> inv_freq = rope_frequencies(desc_.ropes[r], s.rope_length);
      pool.parallel_for(s.count, 16, [&](size_t begin, size_t end, size_t) {
        for (size_t i = begin; i < end; ++i)
          fill_row(r, s.first_row + i, s.position + static_cast<int64_t>(i), inv_freq);
      });
    }
  }
}

void RopeTables::fill_row(size_t rope, size_t row, int64_t position, const std::vector<float>& inv_freq) {
  float* out = tables_[rope].data() + row * 2 * half(rope);
  const float attention_factor = desc_.ropes[rope].attention_factor;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float angle =
        static_cast<float>(position) * inv_freq[i];  // float32, as the models were trained with
    out[i] = std::cos(angle) * attention_factor;
    out[inv_freq.size() + i] = std::sin(angle) * attention_factor;
  }
}

struct Attention::State {
  float *q, *m, *l, *o;  // [n][hd], [n], [n], [n][hd]
  int64_t lo[kTile], hi[kTile];
  size_t n, hd;

  static size_t floats(size_t hd) { return kTile * (2 * hd + 2); }
  State(float* memory, size_t n, size_t hd) : q(memory), m(q + n * hd), l(m + n), o(l + n), n(n), hd(hd) {}

  void reset() {
    std::fill_n(m, n, -std::numeric_limits<float>::infinity());
    std::fill_n(l, n, 0.0f);
    std::fill_n(o, n * hd, 0.0f);
  }
  void share_queries(const State& other) {
    q = other.q;
    std::copy_n(other.lo, n, lo);
    std::copy_n(other.hi, n, hi);
  }
  // Adds what another chunk of the context gave. l = 0 means that nothing was there for the query.
  void merge(const State& part) {
    for (size_t i = 0; i < n; ++i) {
      if (part.l[i] == 0.0f) continue;
      if (l[i] == 0.0f) {
        std::copy_n(part.o + i * hd, hd, o + i * hd);
        l[i] = part.l[i], m[i] = part.m[i];
        continue;
      }
      const float top = std::max(m[i], part.m[i]);
      const float mine = std::exp(m[i] - top), theirs = std::exp(part.m[i] - top);
      for (size_t d = 0; d < hd; ++d) o[i * hd + d] = o[i * hd + d] * mine + part.o[i * hd + d] * theirs;
      l[i] = l[i] * mine + part.l[i] * theirs;
      m[i] = top;
    }
  }
};

Attention::Attention(const ModelDesc& desc, const kernels::Kernels& k, ThreadPool& pool, KvCache& kv)
    : desc_(desc),
      k_(k),
      pool_(pool),
      kv_(kv),
      hd_(kv.head_dim()),
      scratch_(pool.size() * 2 * State::floats(hd_)) {}

void Attention::store(const Batch& batch, size_t layer, const LayerWeights& w, const RopeTables& ropes,
                      Rows q, Rows k, Rows v, const Share& share) {
  for (const BatchSequence& s : batch.sequences) {
    const size_t begin = std::max(s.first_row, share.begin_row());
    const size_t end = std::min(s.first_row + s.count, share.end_row(batch.rows()));
    const auto finish = [&](size_t from, size_t to, size_t) {
      for (size_t row = from; row < to; ++row)
        finish_projections(s, row - s.first_row, layer, w, ropes, q, k, v);
    };
    if (begin >= end) continue;
    if (share.alone())
      finish(begin, end, 0);
    else
      pool_.parallel_for(end - begin, 4,
                         [&](size_t i, size_t j, size_t) { finish(begin + i, begin + j, 0); });
  }
}

void Attention::attend(size_t layer, Rows q, Rows out, const Share& share) {
  const trace::Span span("attend");
  const int64_t window = desc_.layers[layer].window;
  if (!share.alone())
    return tiles_.size() >= 4 * pool_.size() ? run_tiles(layer, window, q, out)
                                             : run_split(layer, window, q, out);
  for (const Tile& t : tiles_)
    if (const size_t tile = (t.seq->first_row + t.token) / kTile; share.first <= tile && tile < share.last)
      run_tile(t, layer, window, q, out, share.thread);
}

void Attention::norm_heads(const Vector& norm, size_t heads, float* x) const {
  if (norm.empty()) return;
  const size_t hd = desc_.head_dim;
  if (desc_.qk_norm == QkNorm::full) return k_.rms_norm(x, norm.data(), desc_.norm_eps, heads * hd, x);
  for (size_t h = 0; h < heads; ++h) k_.rms_norm(x + h * hd, norm.data(), desc_.norm_eps, hd, x + h * hd);
}

void Attention::finish_projections(const BatchSequence& s, size_t token, size_t layer, const LayerWeights& w,
                                   const RopeTables& ropes, Rows q, Rows k, Rows v) {
  const size_t row = s.first_row + token, hd = desc_.head_dim;
  norm_heads(w.q_norm, desc_.heads, q.row(row));
  norm_heads(w.k_norm, desc_.kv_heads, k.row(row));
  if (const int rope = desc_.layers[layer].rope; rope >= 0) {
    const float *cos = ropes.cos(rope, row), *sin = ropes.sin(rope, row);
    for (int64_t h = 0; h < desc_.heads; ++h) k_.rope(cos, sin, ropes.half(rope), q.row(row) + h * hd);
    for (int64_t h = 0; h < desc_.kv_heads; ++h) k_.rope(cos, sin, ropes.half(rope), k.row(row) + h * hd);
  }
  const size_t position = s.position + token;
  const int32_t page = kv_.pages(s.seq)[position / kPage];
  alignas(64) float padded[2][kernels::kMaxHeadDim];  // checked when the engine is made
  for (int64_t h = 0; h < desc_.kv_heads; ++h) {
    const float *kh = k.row(row) + h * hd, *vh = v.row(row) + h * hd;
    if (hd != hd_) {
      std::fill_n(std::copy_n(kh, hd, padded[0]), hd_ - hd, 0.0f);
      std::fill_n(std::copy_n(vh, hd, padded[1]), hd_ - hd, 0.0f);
      kh = padded[0], vh = padded[1];
    }
    k_.kv_store(kv_.type(), kh, vh, hd_, position % kPage, kv_.block(page, layer, h));
  }
}

// Never across the border of two tiles of rows, so that whoever owns rows owns their attention. Powers of two
// fill tiles of rows, and 4 queries at a time keep the kernel's registers full.
void Attention::make_tiles(const Batch& batch) {
  tiles_.clear();
  const size_t group = desc_.heads / desc_.kv_heads, heads = std::min(group, kTile);
  const size_t most = std::bit_floor(kTile / heads);
  for (const BatchSequence& s : batch.sequences)
    for (size_t kv_head = 0; kv_head < static_cast<size_t>(desc_.kv_heads); ++kv_head)
      for (size_t h = 0; h < group; h += heads)
        for (size_t t = 0, tokens = 0; t < s.count; t += tokens) {
          tokens = std::min({most, s.count - t, kTile - (s.first_row + t) % kTile});
          tiles_.push_back({&s, kv_head, kv_head * group + h, std::min(heads, group - h), t, tokens});
        }
}

void Attention::load_queries(const Tile& t, int64_t window, Rows q, State& s) const {
  const size_t hd = desc_.head_dim;
  for (size_t i = 0; i < t.queries(); ++i) {
    const size_t token = t.token + i / t.heads, head = t.head + i % t.heads;
    const float* from = q.row(t.seq->first_row + token) + head * hd;
    float* to = s.q + i * hd_;
    for (size_t d = 0; d < hd; ++d) to[d] = from[d] * desc_.attention_scale;
    std::fill(to + hd, to + hd_, 0.0f);
    s.hi[i] = t.seq->position + static_cast<int64_t>(token) + 1;
    s.lo[i] = window > 0 ? std::max<int64_t>(0, s.hi[i] - window) : 0;
  }
}

size_t Attention::chunks(const Tile& t) const {
  const size_t end = t.seq->position + t.token + t.tokens;
  return chunks_of(pad_to(end, kPage) / kPage);
}

void Attention::attend_chunk(const Tile& t, size_t layer, size_t chunk, State& s) const {
  s.reset();
  // Keys that some query of the tile may see; the first query looks back farthest, the last one forward.
  const size_t lo = s.lo[0] / kPage, hi = pad_to(s.hi[s.n - 1], kPage) / kPage;
  const size_t first = std::max(lo, first_page(chunk)), last = std::min(hi, first_page(chunk + 1));
  if (first >= last) return;
  const uint8_t* pages[kLongPages];
  const auto& ids = kv_.pages(t.seq->seq);
  for (size_t p = first; p < last; ++p) pages[p - first] = kv_.block(ids[p], layer, t.kv_head);
  const uint8_t* next = last < hi ? kv_.block(ids[last], layer, t.kv_head) : nullptr;
  k_.attend(kv_.type(), pages, last - first, static_cast<int64_t>(first),
            {s.q, s.lo, s.hi, s.m, s.l, s.o, s.n, s.hd, next});
}

void Attention::store_output(const Tile& t, const State& s, Rows out) const {
  const size_t hd = desc_.head_dim;
  for (size_t i = 0; i < t.queries(); ++i) {
    float* to = out.row(t.seq->first_row + t.token + i / t.heads) + (t.head + i % t.heads) * hd;
    const float scale = 1.0f / s.l[i];
    for (size_t d = 0; d < hd; ++d) to[d] = s.o[i * hd_ + d] * scale;
  }
}

// Many tiles: each thread takes whole tiles.
void Attention::run_tiles(size_t layer, int64_t window, Rows q, Rows out) {
  pool_.parallel_for(tiles_.size(), 1, [&](size_t begin, size_t end, size_t thread) {
    for (size_t i = begin; i < end; ++i) run_tile(tiles_[i], layer, window, q, out, thread);
  });
}

void Attention::run_tile(const Tile& t, size_t layer, int64_t window, Rows q, Rows out, size_t thread) {
  float* memory = scratch_.data() + thread * 2 * State::floats(hd_);
  State total(memory, t.queries(), hd_), part(memory + State::floats(hd_), t.queries(), hd_);
  load_queries(t, window, q, total);
  part.share_queries(total);
  attend_chunk(t, layer, 0, total);
  for (size_t c = 1; c < chunks(t); ++c) {
    attend_chunk(t, layer, c, part);
    total.merge(part);
  }
  store_output(t, total, out);
}

// Few tiles (decode): the threads share the chunks of a long context.
void Attention::run_split(size_t layer, int64_t window, Rows q, Rows out) {
  size_t most = 0;
  for (const Tile& t : tiles_) most = std::max(most, chunks(t));
  const size_t floats = State::floats(hd_);
  partial_.resize(std::max(partial_.size(), tiles_.size() * most * floats));
  auto state = [&](size_t tile, size_t chunk) {
    return State(partial_.data() + (tile * most + chunk) * floats, tiles_[tile].queries(), hd_);
  };
  pool_.parallel_for(tiles_.size() * most, 1, [&](size_t begin, size_t end, size_t) {
    for (size_t i = begin; i < end; ++i) {
      const Tile& t = tiles_[i / most];
      if (i % most >= chunks(t)) continue;
      State s = state(i / most, i % most);
      load_queries(t, window, q, s);
      attend_chunk(t, layer, i % most, s);
    }
  });
  // As before, neighbouring tiles in one thread, which mostly has their parts in its cache.
  const size_t grain = most > 1 ? 1 : tiles_.size();
  pool_.parallel_for(tiles_.size(), grain, [&](size_t begin, size_t end, size_t thread) {
    for (size_t i = begin; i < end; ++i) {
      State total(scratch_.data() + thread * 2 * State::floats(hd_), tiles_[i].queries(), hd_);
      total.reset();
      for (size_t c = 0; c < chunks(tiles_[i]); ++c) total.merge(state(i, c));
      store_output(tiles_[i], total, out);
    }
  });
}

}  // namespace hotset::model
