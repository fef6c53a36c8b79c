// Predictors that are matrices: the gate itself, or a low-rank map in front of it.
#pragma once

#include <vector>

#include "model/weights.h"
#include "predictor/predictor.h"

namespace hotset::predictor {

// Memory that the matrices of a predictor lie in.
using Memory = std::vector<Buffer>;

// scores = gate x, exact: all gates stay in memory as packed matrices [neurons, hidden] in store order.
std::unique_ptr<Predictor> make_gate(std::vector<model::Matrix> gates, Memory memory,
                                     const kernels::Kernels& k);

// scores = up f(down x): Deja Vu's and PowerInfer's predictor. down [rank, hidden], up [neurons, rank]; f =
// ReLU or none.
struct LowRank {
  model::Matrix down, up;
};
std::unique_ptr<Predictor> make_low_rank(std::vector<LowRank> layers, Memory memory, bool relu,
                                         size_t max_rows, const kernels::Kernels& k);

}  // namespace hotset::predictor
