#include "pipeline/dense_pass.h"

#include <algorithm>

#include "base/trace.h"

namespace hotset::pipeline {

using kernels::kTile;
using model::Input;
using model::Rows;
using quant::Format;

namespace {
constexpr size_t kUnit = 32;  // neurons whose products one thread makes at a time
constexpr size_t kPart =
    128;  // tokens it makes them for: their activations (590 KB at hidden 4096) stay in L2
static_assert(kPart % kTile == 0);
constexpr size_t kBlockCols = quant::kLaneGroups * quant::kGroup;

size_t blocks_of(size_t cols) { return (cols + kBlockCols - 1) / kBlockCols; }
}  // namespace

DensePass::DensePass(const model::ModelDesc& desc, const NeuronFile& file, const kernels::Kernels& k,
                     size_t max_rows, size_t max_piece)
    : desc_(desc),
      file_(file),
      k_(k),
      products_of_(desc, file, k),
      max_piece_(max_piece),
      lanes_(max_rows, desc.hidden),
      product_memory_(max_rows * max_piece * sizeof(float)),
      index_memory_(max_rows * max_piece * sizeof(uint16_t)),
      products_{reinterpret_cast<float*>(product_memory_.data()), max_piece},
      active_(max_rows) {}

void DensePass::begin(const Input& in, bool gate_matrix, ThreadPool& pool, Rows y) {
  threads_.resize(std::max(threads_.size(), pool.size()));
  lanes_.shape(in.rows);
  if (gate_matrix) in.q->shape(in.rows, desc_.hidden);
  pool.parallel_for(in.rows, 2, [&](size_t begin, size_t end, size_t) {
    for (size_t t = begin; t < end; ++t) {
      k_.quantize_lanes(in.f.row(t), lanes_.row(t));
      if (gate_matrix) k_.quantize(in.f.row(t), desc_.hidden, in.q->tile(t / kTile), t % kTile);
      std::fill_n(y.row(t), model::pad_to(desc_.hidden, quant::kGroup), 0.0f);
    }
  });
}

void DensePass::add(const Piece& p, const Input& in, ThreadPool& pool, Rows y, model::Record& record,
                    const std::function<void()>& meanwhile) {
  {
    const trace::Span span("gate and up");
    pool.parallel_for(p.count(), kUnit, [&](size_t begin, size_t end, size_t thread) {
      if (thread == 0) meanwhile();
      unit(p, begin, end - begin, in, threads_[thread]);
    });
  }
  const trace::Span span("down");
  pool.parallel_for(in.rows, 4, [&](size_t begin, size_t end, size_t) {
    for (size_t t = begin; t < end; ++t) gather(p, t, record);
  });
  const size_t blocks = blocks_of(desc_.hidden);
  pool.parallel_for(
      blocks, std::max<size_t>(1, blocks / (2 * pool.size())),
      [&](size_t begin, size_t end, size_t thread) { down(p, begin, end, in.rows, threads_[thread], y); });
}

void DensePass::end(size_t rows, ThreadPool& pool, Rows y) {
  pool.parallel_for(rows, 4, [&](size_t begin, size_t end, size_t) {
    for (size_t t = begin; t < end; ++t) k_.order_sums(desc_.hidden, 0, blocks_of(desc_.hidden), y.row(t));
  });
}

// Products of neurons [begin, begin + count) of the piece for all tokens.
void DensePass::unit(const Piece& p, size_t begin, size_t count, const Input& in, Scratch& s) {
  s.bundles.resize(count);
  s.index.resize(count);
  for (size_t i = 0; i < count; ++i) {
    s.bundles[i] = p.bundle(begin + i);
    s.index[i] = static_cast<uint32_t>(p.first + begin + i);
  }
  for (size_t first = 0; first < in.rows; first += kPart) {
    const size_t tokens = std::min(kPart, in.rows - first);
    const KnownGates known = p.gate ? gate_matrix(p, begin, count, in, first, tokens, s) : KnownGates{};
    products_of_.run({p.layer, s.bundles.data(), s.index.data(), count}, lanes_.row(first), tokens, known,
                     s.products, products_.row(first) + begin, products_.ld);
  }
}

// The gates of a unit from the matrix, whose rows come in blocks of 16.
KnownGates DensePass::gate_matrix(const Piece& p, size_t begin, size_t count, const Input& in, size_t first,
                                  size_t tokens, Scratch& s) const {
  const auto matmul = file_.layout.format == Format::q4_0 ? k_.matmul_q4_0 : k_.matmul_q8_0;
  const size_t block = (p.first + begin) / quant::kRowBlock;
  const size_t blocks = quant::row_blocks(p.first + begin + count) - block, width = blocks * quant::kRowBlock;
  s.gate.resize(tokens * width);
  for (size_t t = 0; t < tokens; t += kTile)
    matmul(p.gate->data + block * quant::row_block_bytes(file_.layout.format, desc_.hidden), blocks,
           quant::col_blocks(desc_.hidden), in.q->tile((first + t) / kTile), s.gate.data() + t * width,
           static_cast<ptrdiff_t>(width));
  return {s.gate.data(), width, block * quant::kRowBlock};
}

// Token t's products that are not zero, and which neurons they are of.
void DensePass::gather(const Piece& p, size_t t, model::Record& record) {
  float* product = products_.row(t);
  if (record.activations) record.mark_all(t, p.layer, p.first, product, p.count());
  uint16_t* neuron = index(t);
  size_t n = 0;
  for (size_t i = 0; i < p.count(); ++i) {
    product[n] = product[i];
    neuron[n] = static_cast<uint16_t>(i);
    n += product[i] != 0.0f;
  }
  active_[t] = n;
}

// Adds the piece's down vectors to the sums of all tokens, columns of blocks [begin, end). Those of the next
// token are fetched meanwhile: some are none of this one's.
void DensePass::down(const Piece& p, size_t begin, size_t end, size_t rows, Scratch& s, Rows y) {
  const auto add = file_.layout.format == Format::q4_0 ? k_.add_neurons_q4_0 : k_.add_neurons_q8_0;
  s.next.clear();
  for (size_t t = 0; t <= rows; ++t) {
    std::swap(s.bundles, s.next);
    if (t < rows) down_vectors(p, t, s.next);
    if (t == 0) continue;
    const bool more = t < rows;
    add({s.bundles.data(), products_.row(t - 1), s.bundles.size(), s.next.data(), more ? s.next.size() : 0},
        desc_.hidden, begin, end, y.row(t - 1));
  }
}

void DensePass::down_vectors(const Piece& p, size_t t, std::vector<const uint8_t*>& out) {
  out.clear();
  for (const uint16_t i : active(t)) out.push_back(p.bundle(i) + file_.layout.down_offset());
}

}  // namespace hotset::pipeline
