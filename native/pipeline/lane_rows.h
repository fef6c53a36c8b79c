// The activations of a few tokens in lane order (kernels::LaneVector).
#pragma once

#include <vector>

#include "kernels/kernels.h"
#include "quant/neuron.h"

namespace hotset::pipeline {

class LaneRows {
 public:
  LaneRows(size_t rows, size_t cols)
      : cols_(cols),
        groups_((cols + kBlock - 1) / kBlock * quant::kLaneGroups),
        q_(rows * groups_ * quant::kGroup),
        d_(rows * groups_),
        s_(rows * groups_) {}

  kernels::LaneVector row(size_t t) {
    return {q_.data() + t * groups_ * quant::kGroup, d_.data() + t * groups_, s_.data() + t * groups_, cols_};
  }

 private:
  static constexpr size_t kBlock = quant::kLaneGroups * quant::kGroup;
  size_t cols_, groups_;
  std::vector<int8_t> q_;
  std::vector<float> d_;
  std::vector<int32_t> s_;
};

}  // namespace hotset::pipeline
