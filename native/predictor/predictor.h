// Says which neurons of a layer are worth computing before their weights are touched.
#pragma once

#include <memory>
#include <string_view>

#include "model/ffn.h"

namespace hotset::predictor {

using model::Input;
using model::Rows;

class Predictor {
 public:
  virtual ~Predictor() = default;
  // scores[t][i] for all neurons i in store order: larger = more expected contribution to token t.
  virtual void score(size_t layer, const Input& in, ThreadPool& pool, Rows scores) = 0;
  // The layer's gate matrix [neurons, hidden] where the scores are the gate's own values (before bias); else
  // null.
  virtual const model::Matrix* gate(size_t layer) const { return nullptr; }
  virtual size_t bytes() const = 0;            // of memory
  virtual size_t bytes_per_token() const = 0;  // read from memory for one token
};

}  // namespace hotset::predictor
