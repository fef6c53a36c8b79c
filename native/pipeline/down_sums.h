// Down of a step of few tokens: weighted sums of the vectors of those neurons that are active for each of
// them.
//
// Neurons are added by windows of neighbours in store order (kernels.h). All tokens add a window before the
// next one is turned to, which is fetched into L2 meanwhile: a vector comes from memory once, however many
// tokens it is active for, and a token's sum has the bits that it has alone.
#pragma once

#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "model/ffn.h"

namespace hotset::pipeline {

class DownSums {
 public:
  DownSums(const kernels::Kernels& k, quant::Format format, size_t hidden);

  // A sum is begin(), add() for neurons in store order, run().
  void begin(size_t rows);
  // products[t * ld]: of token t; where it is 0 the neuron is not active.
  void add(uint32_t neuron, const uint8_t* down, const float* products, size_t ld);
  // y[t] = sum of product times down vector, for columns up to hidden rounded up to a group; 0 behind hidden.
  // Threads share the columns.
  void run(ThreadPool& pool, model::Rows y) const;
  // Neurons of each token, all together.
  size_t active() const;

 private:
  struct List {
    std::vector<const uint8_t*> vectors;
    std::vector<float> weights;  // of a token; none of all tokens together
    std::vector<size_t> first;   // [windows + 1]
  };
  void columns(size_t begin, size_t end, model::Rows y) const;
  kernels::SumWindow window(size_t t, size_t w) const;

  const kernels::Kernels& k_;
  kernels::Kernels::AddNeurons add_;
  size_t hidden_, rows_ = 0;
  uint32_t next_window_ = 0;  // neurons from here on are not of the last window
  List any_;                  // active for any token
  std::vector<List> of_;      // each token; as many as there ever were
};

}  // namespace hotset::pipeline
