// How the rows of a large batch are shared out among threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace hotset::model {

// What a stage computes: tiles [first, last) of the batch, by one thread that forks no more; or, by default,
// all rows, by all threads together, who share out weights.
struct Share {
  size_t first = 0, last = SIZE_MAX;
  size_t thread = SIZE_MAX;

  bool alone() const { return thread != SIZE_MAX; }
  size_t begin_row() const { return first * kernels::kTile; }
  size_t end_row(size_t rows) const { return last <= rows / kernels::kTile ? last * kernels::kTile : rows; }
};

// With many tokens a thread takes neighbouring ones through stage after stage without waiting for others, so
// their activations stay in its core's caches and only weights are shared, which nobody writes. With few
// tokens threads share out the weights instead.
class RowParts {
 public:
  static constexpr size_t kTilesEach = 4;  // fewer, and reading all weights in every thread costs more

  RowParts(size_t rows, const ThreadPool& pool) {
    const size_t tiles = (rows + kernels::kTile - 1) / kernels::kTile, threads = pool.size();
    // Two shares a thread: what a late one leaves is taken by others; more, and weights are read more often.
    if (tiles >= kTilesEach * threads) deal(tiles, tiles / (2 * threads), threads);
  }

  bool split() const { return !shares_.empty(); }

  // Calls body(share) for all rows; each share in the same thread every time, unless that is late.
  template <class Body>
  void each(ThreadPool& pool, Body&& body) const {
    if (!split()) return body(Share{});
    pool.parallel_parts(shares_.size(), [&](size_t i, size_t thread) {
      body(Share{shares_[i].first, shares_[i].last, thread});
    });
  }

 private:
  // Later tokens have more to attend to: groups go to the threads to and fro, as 0 1 1 0 0 1.
  void deal(size_t tiles, size_t together, size_t threads) {
    for (size_t thread = 0; thread < threads; ++thread)
      for (size_t i = 0; i * together < tiles; ++i) {
        const size_t turn = i / threads, place = i % threads;
        if ((turn % 2 ? threads - 1 - place : place) == thread)
          shares_.push_back({i * together, std::min(tiles, (i + 1) * together)});
      }
  }

  std::vector<Share> shares_;
};

// Calls body(row) for the rows of a share.
template <class Body>
void each_row(size_t rows, const Share& share, ThreadPool& pool, Body&& body) {
  if (share.alone()) {
    for (size_t row = share.begin_row(); row < share.end_row(rows); ++row) body(row);
    return;
  }
  pool.parallel_for(rows, 4, [&](size_t begin, size_t end, size_t) {
    for (size_t row = begin; row < end; ++row) body(row);
  });
}

}  // namespace hotset::model
