// How the rows of a large batch are shared out among threads.
#pragma once

#include <algorithm>
#include <cstddef>

#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace hotset::model {

// With many tokens every thread owns some of them through all phases, so activations stay in its core's
// caches and only weights are shared, which nobody writes (SmolLM2, 512 tokens, 2 threads: 1.9x of one thread
// instead of 1.0x where cores are far apart). With few tokens threads share out the weights instead. Owning
// goes by tiles in turn, as later tokens have more to attend to.
class RowParts {
 public:
  static constexpr size_t kTilesEach = 4;  // fewer, and reading all weights in every thread costs more

  RowParts(size_t rows, const ThreadPool& pool)
      : rows_(rows), parts_(tiles() >= kTilesEach * pool.size() ? std::min<size_t>(pool.size(), 64) : 1) {}

  size_t parts() const { return parts_; }
  bool split() const { return parts_ > 1; }
  size_t tiles() const { return (rows_ + kernels::kTile - 1) / kernels::kTile; }
  size_t part_of(size_t row) const { return row / kernels::kTile % parts_; }

  // Calls body(row) for all rows, in their owners where rows are owned.
  template <class Body>
  void each_row(ThreadPool& pool, Body&& body) const {
    if (!split()) {
      pool.parallel_for(rows_, 4, [&](size_t begin, size_t end, size_t) {
        for (size_t row = begin; row < end; ++row) body(row);
      });
      return;
    }
    pool.parallel_parts(parts_, [&](size_t part, size_t) {
      for (size_t tile = part; tile < tiles(); tile += parts_)
        for (size_t row = tile * kernels::kTile; row < std::min(rows_, (tile + 1) * kernels::kTile); ++row)
          body(row);
    });
  }

 private:
  size_t rows_, parts_;
};

// Some tiles of a batch: first, first + step, ...
struct TileRange {
  size_t first = 0, step = 1;
};

}  // namespace hotset::model
