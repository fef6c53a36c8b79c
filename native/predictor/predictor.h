// Says which neurons of a layer are worth computing before their weights are touched.
#pragma once

#include <cstdint>
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
  // Whether the scores are the gate's own values (before bias), wherever it lies.
  virtual bool knows_gates() const { return gate(0) != nullptr; }
  // What it reads from the drive so far; seconds of waiting with nothing to compute.
  struct Read {
    uint64_t requests = 0, bytes = 0;
    double stall_seconds = 0;
  };
  virtual Read read() const { return {}; }
  // Amid other work: sends what it will want next. Does not wait. Throws IoError.
  virtual void read_on() {}
  virtual size_t bytes() const = 0;            // of memory
  virtual size_t bytes_per_token() const = 0;  // read from memory for one token
};

}  // namespace hotset::predictor
