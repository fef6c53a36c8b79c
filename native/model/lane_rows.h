// The activations of several tokens in lane order (kernels::LaneVector).
#pragma once

#include "base/memory.h"
#include "kernels/kernels.h"
#include "quant/neuron.h"

namespace hotset::model {

class LaneRows {
 public:
  LaneRows(size_t max_rows, size_t cols)
      : cols_(cols),
        groups_((cols + kBlock - 1) / kBlock * quant::kLaneGroups),
        stride_(max_rows),
        memory_(max_rows * groups_ * (quant::kGroup + sizeof(float) + sizeof(int32_t))),
        q_(reinterpret_cast<int8_t*>(memory_.data())),
        d_(reinterpret_cast<float*>(q_ + max_rows * groups_ * quant::kGroup)),
        s_(reinterpret_cast<int32_t*>(d_ + max_rows * groups_)) {}

  // Lays out a tile of `rows` tokens, at most max_rows; what was in it is lost.
  void shape(size_t rows) { stride_ = rows; }
  kernels::LaneVector row(size_t t) const { return kernels::LaneVector{q_, d_, s_, cols_, stride_}.token(t); }
  size_t bytes() const { return memory_.size(); }

 private:
  static constexpr size_t kBlock = quant::kLaneGroups * quant::kGroup;
  size_t cols_, groups_, stride_;
  Buffer memory_;  // vectors aligned to cache lines: kernels load whole ones
  int8_t* q_;
  float* d_;
  int32_t* s_;
};

}  // namespace hotset::model
