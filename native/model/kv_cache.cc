#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"

namespace hotset::model {

using kernels::kPage;

namespace {
size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
}  // namespace

KvCache::KvCache(kernels::KvType type, size_t layers, size_t kv_heads, size_t head_dim, size_t tokens)
    : type_(type),
      layers_(layers),
      kv_heads_(kv_heads),
      head_dim_(round_up(head_dim, 16)),
      block_bytes_(kernels::kv_page_bytes(type, head_dim_)),
      page_bytes_(block_bytes_ * layers * kv_heads) {
  const size_t pages = round_up(std::max<size_t>(tokens, 1), kPage) / kPage;
  memory_ = Buffer(pages * page_bytes_);
  uses_.assign(pages, 0);
  for (size_t i = pages; i-- > 0;) free_.push_back(static_cast<int32_t>(i));
}

KvCache::Sequence& KvCache::find(int32_t seq) {
  auto it = sequences_.find(seq);
  if (it == sequences_.end()) throw InvalidArgument("no sequence " + std::to_string(seq));
  return it->second;
}
const KvCache::Sequence& KvCache::find(int32_t seq) const { return const_cast<KvCache*>(this)->find(seq); }

int32_t KvCache::create() {
  sequences_[next_] = {};
  return next_++;
}

int32_t KvCache::fork(int32_t seq) {
  Sequence copy = find(seq);
  for (int32_t p : copy.pages) ++uses_[p];
  sequences_[next_] = std::move(copy);
  return next_++;
}

void KvCache::release(int32_t seq) {
  for (int32_t p : find(seq).pages) drop(p);
  sequences_.erase(seq);
}

void KvCache::truncate(int32_t seq, size_t tokens) {
  Sequence& s = find(seq);
  if (tokens > s.length)
    throw InvalidArgument("sequence " + std::to_string(seq) + " has " + std::to_string(s.length) +
                          " tokens, cannot be cut to " + std::to_string(tokens));
  s.length = tokens;
  rollback(seq);
}

size_t KvCache::length(int32_t seq) const { return find(seq).length; }
const std::vector<int32_t>& KvCache::pages(int32_t seq) const { return find(seq).pages; }

int32_t KvCache::take() {
  const int32_t page = free_.back();
  free_.pop_back();
  uses_[page] = 1;
  peak_pages_ = std::max(peak_pages_, uses_.size() - free_.size());
  return page;
}

void KvCache::drop(int32_t page) {
  if (--uses_[page] == 0) free_.push_back(page);
}

void KvCache::reserve(int32_t seq, size_t n) {
  Sequence& s = find(seq);
  const size_t want = round_up(s.length + n, kPage) / kPage;
  const size_t first = s.length / kPage;  // the page that the next token goes to
  const bool copy = n > 0 && first < s.pages.size() && uses_[s.pages[first]] > 1;
  const size_t fresh = (want > s.pages.size() ? want - s.pages.size() : 0) + (copy ? 1 : 0);
  if (fresh > free_.size())
    throw OutOfMemory("the KV cache has room for " + std::to_string(free_tokens()) + " more tokens, " +
                      std::to_string(fresh * kPage) + " are needed; raise the context or free sequences");
  if (copy) {
    const int32_t page = take();
    std::memcpy(block(page, 0, 0), block(s.pages[first], 0, 0), page_bytes_);
    drop(s.pages[first]);
    s.pages[first] = page;
  }
  while (s.pages.size() < want) s.pages.push_back(take());
}

void KvCache::commit(int32_t seq, size_t n) { find(seq).length += n; }

void KvCache::rollback(int32_t seq) {
  Sequence& s = find(seq);
  const size_t keep = round_up(s.length, kPage) / kPage;
  while (s.pages.size() > keep) {
    drop(s.pages.back());
    s.pages.pop_back();
  }
}

}  // namespace hotset::model
