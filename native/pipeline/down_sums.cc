#include "pipeline/down_sums.h"

#include <algorithm>

#include "quant/neuron.h"

namespace hotset::pipeline {

using kernels::kSumWindow;
using quant::Format;

namespace {
constexpr size_t kBlockCols = quant::kLaneGroups * quant::kGroup;
}  // namespace

DownSums::DownSums(const kernels::Kernels& k, Format format, size_t hidden)
    : k_(k), add_(format == Format::q4_0 ? k.add_neurons_q4_0 : k.add_neurons_q8_0), hidden_(hidden) {}

void DownSums::begin(size_t rows) {
  rows_ = rows;
  next_window_ = 0;
  of_.resize(std::max(of_.size(), rows));
  const auto clear = [](List& list) {
    list.vectors.clear();
    list.weights.clear();
    list.first.assign(1, 0);
  };
  clear(any_);
  for (List& list : of_) clear(list);
}

void DownSums::add(uint32_t neuron, const uint8_t* down, const float* products, size_t ld) {
  bool active = false;
  for (size_t t = 0; t < rows_; ++t) active |= products[t * ld] != 0.0f;
  if (!active) return;
  if (neuron >= next_window_) {
    next_window_ = static_cast<uint32_t>((neuron / kSumWindow + 1) * kSumWindow);
    any_.first.push_back(any_.vectors.size());
    for (size_t t = 0; t < rows_; ++t) of_[t].first.push_back(of_[t].vectors.size());
  }
  const auto put = [](List& list, const uint8_t* vector) {
    list.vectors.push_back(vector);
    ++list.first.back();
  };
  put(any_, down);
  for (size_t t = 0; t < rows_; ++t) {
    if (products[t * ld] == 0.0f) continue;
    put(of_[t], down);
    of_[t].weights.push_back(products[t * ld]);
  }
}

// Window w of token t, which fetches its share of the next one.
kernels::SumWindow DownSums::window(size_t t, size_t w) const {
  const List& list = of_[t];
  const size_t first = list.first[w], last = any_.first.size() - 1;
  kernels::SumWindow out{list.vectors.data() + first, list.weights.data() + first, list.first[w + 1] - first};
  if (w + 1 == last) return out;
  const size_t next = any_.first[w + 1], n = any_.first[w + 2] - next;
  out.next = any_.vectors.data() + next + n * t / rows_;
  out.n_next = n * (t + 1) / rows_ - n * t / rows_;
  return out;
}

void DownSums::columns(size_t begin, size_t end, model::Rows y) const {
  const size_t padded = (hidden_ + quant::kGroup - 1) / quant::kGroup * quant::kGroup;
  for (size_t t = 0; t < rows_; ++t)
    std::fill(y.row(t) + begin * kBlockCols, y.row(t) + std::min(padded, end * kBlockCols), 0.0f);
  for (size_t w = 0; w + 1 < any_.first.size(); ++w)
    for (size_t t = 0; t < rows_; ++t) add_(window(t, w), hidden_, begin, end, y.row(t));
  for (size_t t = 0; t < rows_; ++t) k_.order_sums(hidden_, begin, end, y.row(t));
}

void DownSums::run(ThreadPool& pool, model::Rows y) const {
  const size_t blocks = (hidden_ + kBlockCols - 1) / kBlockCols;
  pool.parallel_for(blocks, std::max<size_t>(1, blocks / (2 * pool.size())),
                    [&](size_t begin, size_t end, size_t) { columns(begin, end, y); });
}

size_t DownSums::active() const {
  size_t n = 0;
  for (size_t t = 0; t < rows_; ++t) n += of_[t].vectors.size();
  return n;
}

}  // namespace hotset::pipeline
