// Keys and values of all sequences, in pages of 64 tokens. Sequences share pages (a prompt that several
// samples continue, a chat's earlier turns); a shared page is copied when one of them writes to it. Source:
// paging and copy-on-write of PagedAttention (arXiv:2309.06180).
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/memory.h"
#include "kernels/kernels.h"

namespace hotset::model {

// All layers and heads of a page lie together, [page][layer][kv_head], so that a copy is one memcpy and
// unused pages are never touched. Not thread-safe.
class KvCache {
 public:
  // head_dim is padded to a multiple of 16. Reserves address space for `tokens`; memory comes on first use.
  KvCache(kernels::KvType type, size_t layers, size_t kv_heads, size_t head_dim, size_t tokens);

  int32_t create();
  int32_t fork(int32_t seq);
  void release(int32_t seq);
  void truncate(int32_t seq, size_t tokens);  // throws InvalidArgument if longer than it is
  size_t length(int32_t seq) const;
  size_t free_tokens() const { return free_.size() * kernels::kPage; }

  // Makes room for `n` more tokens and unshares the page they start in. Throws OutOfMemory and changes
  // nothing if there are too few free pages. The length grows with commit().
  void reserve(int32_t seq, size_t n);
  void commit(int32_t seq, size_t n);
  void rollback(int32_t seq);  // gives back what reserve() took and commit() did not use

  const std::vector<int32_t>& pages(int32_t seq) const;
  uint8_t* block(int32_t page, size_t layer, size_t kv_head) const {
    return memory_.data() +
           ((static_cast<size_t>(page) * layers_ + layer) * kv_heads_ + kv_head) * block_bytes_;
  }
  kernels::KvType type() const { return type_; }
  size_t head_dim() const { return head_dim_; }  // padded
  size_t bytes_reserved() const { return memory_.size(); }
  size_t bytes_used() const { return peak_pages_ * page_bytes_; }  // ever touched

 private:
  struct Sequence {
    std::vector<int32_t> pages;
    size_t length = 0;
  };
  Sequence& find(int32_t seq);
  const Sequence& find(int32_t seq) const;
  int32_t take();
  void drop(int32_t page);

  kernels::KvType type_;
  size_t layers_, kv_heads_, head_dim_, block_bytes_, page_bytes_;
  size_t peak_pages_ = 0;
  Buffer memory_;
  std::vector<int32_t> free_;  // stack; low pages on top, so that memory in use stays compact
  std::vector<int32_t> uses_;  // [pages]
  std::unordered_map<int32_t, Sequence> sequences_;
  int32_t next_ = 1;
};

}  // namespace hotset::model
