// Matrix products of a batch, cut over the threads by row blocks.
#pragma once

#include <initializer_list>
#include <span>

#include "base/cpu.h"
#include "model/activations.h"
#include "model/row_parts.h"

namespace hotset::model {

// One input in both forms; `q` is filled only if some weight that reads it is quantized.
struct Input {
  Rows f;
  QuantizedRows* q;
  size_t rows;  // tokens
};

// out[t][r] = W x_t + bias; if `residual` is set, residual[t][r] += that instead (out is then scratch).
struct Product {
  const Matrix* w;
  const Vector* bias;  // may be empty
  Rows out;
  const Rows* residual = nullptr;
};

class Linear {
 public:
  Linear(const kernels::Kernels& k, ThreadPool& pool) : k_(k), pool_(pool) {}

  // Quantizes rows of `in` if one of `readers` needs it. With a share of one thread, in.q has its shape.
  void prepare(const Input& in, size_t cols, std::initializer_list<const Matrix*> readers,
               const Share& share = {});
  // Computes several products of one input in one phase.
  void run(const Input& in, std::span<const Product> products, const Share& share = {});
  // Rows [16 * block, 16 * (block + blocks)) of W for one tile of tokens, into out[t * ldo + row].
  void tile(const Matrix& w, size_t block, size_t blocks, const Input& in, size_t tile, float* out,
            ptrdiff_t ldo) const;

 private:
  void run_blocks(const Input& in, const Product& p, size_t begin, size_t end, const Share& share) const;
  void run_products(const Input& in, std::span<const Product> products, size_t begin, size_t end,
                    const Share& share) const;
  const kernels::Kernels& k_;
  ThreadPool& pool_;
};

// What row blocks are dealt out as: bytes of weights, and products of them with one token.
struct BlockSize {
  size_t bytes, products;
};
// Blocks that one thread takes at a time: enough chunks that threads end together, few enough that a chunk is
// a long stream. With many tokens weights and products of a tile of them take at most a quarter of `l2`, the
// second cache of a core in bytes (0: unknown, taken to be 1 MiB): the weights stay there from tile to tile
// beside the activations, which are read from whichever cache holds them.
size_t chunk_blocks(size_t blocks, BlockSize block, size_t rows, size_t threads, size_t l2);
inline size_t chunk_blocks(size_t blocks, BlockSize block, size_t rows, size_t threads) {
  static const size_t l2 = core_cache_bytes(2);
  return chunk_blocks(blocks, block, rows, threads, l2);
}

}  // namespace hotset::model
