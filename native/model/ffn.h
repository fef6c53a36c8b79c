// An FFN whose weights are not in Weights: someone above the forward pass computes it (native/pipeline).
#pragma once

#include "base/thread_pool.h"
#include "model/activations.h"
#include "model/linear.h"
#include "model/record.h"

namespace hotset::model {

class Ffn {
 public:
  virtual ~Ffn() = default;
  // y[t] = down(f(gate x_t) * h(up x_t)) for all rows of `in` (its int8 copy is not filled), without down's
  // bias.
  // Marks active neurons in `record` if that is asked for. draft: the result is checked later, so it may be
  // less exact than what the engine was made to give.
  virtual void run(size_t layer, const Input& in, ThreadPool& pool, Rows y, Record& record, bool draft) = 0;
};

}  // namespace hotset::model
