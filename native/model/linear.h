// Matrix products of a batch, cut over the threads by row blocks.
#pragma once

#include <initializer_list>
#include <span>

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

// Row blocks that one thread takes at a time: enough chunks that threads end together, few enough that a
// chunk is a long stream; for many tokens no more than stays in an L2 cache beside the activations.
size_t chunk_blocks(size_t blocks, size_t block_bytes, size_t rows, size_t threads);

}  // namespace hotset::model
