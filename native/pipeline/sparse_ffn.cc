#include "pipeline/sparse_ffn.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/trace.h"
#include "model/ffn_floor.h"

namespace hotset::pipeline {

using model::Input;
using model::pad_to;
using model::Rows;
using quant::Format;

namespace {

constexpr size_t kChunk = 16;  // neurons of one dot_neurons() call
constexpr size_t kBlockCols = quant::kLaneGroups * quant::kGroup;
constexpr size_t kRing = 3;

Rows make_rows(Buffer& memory, size_t rows, size_t cols) {
  const size_t ld = pad_to(cols, quant::kColBlock);
  memory = Buffer(rows * ld * sizeof(float));
  return {reinterpret_cast<float*>(memory.data()), ld};
}

kernels::Kernels::DotNeurons dots(const kernels::Kernels& k, Format f) {
  return f == Format::q4_0 ? k.dot_neurons_q4_0 : k.dot_neurons_q8_0;
}
kernels::Kernels::SumNeurons sums(const kernels::Kernels& k, Format f) {
  return f == Format::q4_0 ? k.sum_neurons_q4_0 : k.sum_neurons_q8_0;
}

const NeuronFile& checked(const NeuronFile& file, const SparseOptions& options, bool predicted) {
  const size_t layers = file.layers();
  const auto per_layer = [&](const char* what, size_t n) {
    if (n != layers)
      throw InvalidArgument("sparse FFN: " + std::to_string(n) + " values of " + what + " for " +
                            std::to_string(layers) + " layers");
  };
  per_layer("crc32c", file.crc32c.size());
  per_layer("hot", options.hot.size());
  if (predicted) per_layer("keep", options.keep.size());
  if (predicted) per_layer("fetch", options.fetch.size());
  for (const auto& sums : file.crc32c) {
    if (sums.size() != file.neurons)
      throw InvalidArgument("sparse FFN: " + std::to_string(sums.size()) + " checksums for " +
                            std::to_string(file.neurons) + " neurons");
  }
  if (file.layout.stride < file.layout.bytes())
    throw InvalidArgument("sparse FFN: stride " + std::to_string(file.layout.stride) +
                          " is less than a bundle, " + std::to_string(file.layout.bytes()));
  return file;
}

// Missing neurons of one layer that find every cold slot in use.
size_t most_spilled(const NeuronFile& file, const SparseOptions& options) {
  const size_t hot = *std::min_element(options.hot.begin(), options.hot.end());
  const size_t cold = file.neurons - std::min(hot, file.neurons);
  return cold - std::min(cold, options.cold_slots);
}

size_t used_bytes(const quant::NeuronLayout& layout, bool gate_known) {
  return gate_known ? layout.gate_offset() : layout.bytes();
}

// What direct I/O must read for them, at most a whole bundle with its padding.
size_t held_bytes(const NeuronFile& file, const io::ReaderOptions& io, size_t used) {
  const size_t alignment = std::max<size_t>(io::open_reader(file.path, io)->alignment(), 64);
  return std::min(file.layout.stride, pad_to(used, alignment));
}

}  // namespace

SparseFfn::SparseFfn(const model::ModelDesc& desc, NeuronFile file, SparseOptions options,
                     std::unique_ptr<predictor::Predictor> predictor, const kernels::Kernels& k,
                     size_t max_rows)
    : desc_(desc),
      k_(k),
      file_(std::move(file)),
      options_(std::move(options)),
      predictor_(std::move(predictor)),
      gate_known_(desc.gated && predictor_ && predictor_->gate(0)),
      used_bytes_(used_bytes(checked(file_, options_, predictor_ != nullptr).layout, gate_known_)),
      held_bytes_(held_bytes(file_, options_.io, used_bytes_)),
      cache_(file_.neurons, options_.hot, options_.cold_slots, held_bytes_, options_.policy),
      reader_(io::open_reader(file_.path, options_.io)),
      stream_(file_, options_.hot, kPieceNeurons, kRing, options_.io),
      lanes_(kMostSparseRows, desc.hidden),
      spill_(most_spilled(file_, options_) * held_bytes_),
      hq_(max_rows, kPieceNeurons) {
  if (file_.layout.hidden != static_cast<size_t>(desc.hidden) ||
      file_.neurons != static_cast<size_t>(desc.ffn))
    throw InvalidArgument("sparse FFN: the neurons are " + std::to_string(file_.neurons) + " of " +
                          std::to_string(file_.layout.hidden) + ", the model wants " +
                          std::to_string(desc.ffn) + " of " + std::to_string(desc.hidden));
  if (predictor_) scores_ = make_rows(score_memory_, kernels::kTile, file_.neurons);
  h_ = make_rows(h_memory_, pad_to(max_rows, kernels::kTile), kPieceNeurons);
  load_hot();
}

// In pieces, as memory may hold less of each bundle than the file.
void SparseFfn::load_hot() {
  LayerStream stream(file_, std::vector<uint32_t>(file_.layers(), 0), kPieceNeurons, kRing, options_.io);
  for (size_t layer = 0; layer < file_.layers(); ++layer) {
    uint8_t* block = cache_.hot_block(layer).data();
    for (size_t first = 0; first < cache_.hot(layer); first += kPieceNeurons) {
      auto piece = stream.next(layer, first);
      piece.count = std::min(piece.count, cache_.hot(layer) - first);
      load_piece(layer, piece, block + first * held_bytes_);
    }
  }
}

void SparseFfn::load_piece(size_t layer, const LayerStream::Piece& piece, uint8_t* to) {
  for (size_t i = 0; i < piece.count; ++i) {
    const uint8_t* bundle = piece.data + i * file_.layout.stride;
    check_bundle(file_, layer, piece.first + i, bundle, file_.layout.bytes(),
                 file_.crc32c[layer][piece.first + i]);
    std::memcpy(to + i * held_bytes_, bundle, held_bytes_);
  }
}

void SparseFfn::run(size_t layer, const Input& in, ThreadPool& pool, Rows y, model::Record& record,
                    bool draft) {
  record_ = &record;
  thread_floats_.resize(std::max(thread_floats_.size(), pool.size()));
  thread_bytes_.resize(std::max(thread_bytes_.size(), pool.size()));
  if (in.rows <= kMostSparseRows && (draft || !options_.draft_only))
    run_sparse(layer, in, pool, y);
  else
    run_dense(layer, in, pool, y);
}

void SparseFfn::run_sparse(size_t layer, const Input& in, ThreadPool& pool, Rows y) {
  ++counters_.layers;
  if (!reader_)
    reader_ = io::open_reader(file_.path, options_.io);  // after an error: the file may be whole again
  for (size_t t = 0; t < in.rows; ++t) k_.quantize_lanes(in.f.row(t), lanes_.row(t));
  select(layer, in, pool);
  present_.products.assign(in.rows * present_.neurons.size(), 0.0f);
  missing_.products.assign(in.rows * missing_.neurons.size(), 0.0f);
  // Each wave is read while what came before it is computed; a second one only if more is missing than the
  // reader takes at once.
  size_t begin = 0, end = request(layer, 0);
  {
    const trace::Span span("gate and up, in memory");
    compute(layer, present_, 0, present_.neurons.size(), in.rows, pool);
  }
  while (begin < end) {
    collect(layer, begin, end);
    const size_t next = request(layer, end);
    {
      const trace::Span span("gate and up, read");
      compute(layer, missing_, begin, end, in.rows, pool);
    }
    begin = end;
    end = next;
  }
  if (record_->activations) {
    record(layer, present_, in.rows);
    record(layer, missing_, in.rows);
  }
  sum_down(in.rows, pool, y);
}

void SparseFfn::consider(size_t layer, uint32_t neuron, float score) {
  const uint8_t* bundle = cache_.find(layer, neuron);
  if (bundle)
    present_.neurons.push_back({neuron, bundle});
  else if (!predictor_ || score >= options_.fetch[layer])
    missing_.neurons.push_back({neuron, nullptr});
  else
    ++counters_.skipped;
}

void SparseFfn::select(size_t layer, const Input& in, ThreadPool& pool) {
  cache_.begin();
  spilled_ = 0;
  present_.neurons.clear();
  missing_.neurons.clear();
  if (!predictor_) {
    for (uint32_t i = 0; i < file_.neurons; ++i) consider(layer, i, 0);
  } else {
    {
      const trace::Span span("predict");
      predictor_->score(layer, in, pool, scores_);
    }
    const trace::Span span("select");
    const float keep = options_.keep[layer];
    for (uint32_t i = 0; i < file_.neurons; ++i) {
      float best = scores_.data[i];
      for (size_t t = 1; t < in.rows; ++t) best = std::max(best, scores_.row(t)[i]);
      if (best >= keep) consider(layer, i, best);
    }
  }
  places_.assign(missing_.neurons.size(), nullptr);
  counters_.candidates += present_.neurons.size() + missing_.neurons.size();
  counters_.missed += missing_.neurons.size();
  trace::count("neurons in memory", static_cast<double>(present_.neurons.size()));
  trace::count("neurons missing", static_cast<double>(missing_.neurons.size()));
}

// Starts the reads of the next missing neurons from `begin` on and returns where the wave ends.
size_t SparseFfn::request(size_t layer, size_t begin) {
  const size_t end = std::min(missing_.neurons.size(), begin + reader_->depth());
  std::vector<io::Read> reads;
  for (size_t i = begin; i < end; ++i) {
    const uint32_t neuron = missing_.neurons[i].index;
    uint8_t* place = cache_.admit(layer, neuron);
    if (!place) place = spill_.data() + spilled_++ * held_bytes_;
    places_[i] = place;
    reads.push_back({file_.position(layer, neuron), {place, held_bytes_}, i});
  }
  try {
    if (!reads.empty()) reader_->submit(reads);
  } catch (...) {
    abandon(layer, begin, end);
    throw;
  }
  counters_.reads += reads.size();
  counters_.bytes_read += reads.size() * held_bytes_;
  return end;
}

// Waits for the reads of the wave. After an error none of them is in the cache.
void SparseFfn::collect(size_t layer, size_t begin, size_t end) {
  const auto start = std::chrono::steady_clock::now();
  try {
    std::vector<uint64_t> tags(end - begin);
    for (size_t done = 0; done < tags.size();) done += reader_->wait({tags.data(), tags.size() - done}, 1);
    counters_.stall_seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const trace::Span span("check");
    const auto& sums = gate_known_ ? file_.crc32c_no_gate : file_.crc32c;
    for (size_t i = begin; i < end; ++i) {
      const uint32_t neuron = missing_.neurons[i].index;
      check_bundle(file_, layer, neuron, places_[i], used_bytes_, sums[layer][neuron]);
      missing_.neurons[i].bundle = places_[i];
    }
  } catch (...) {
    abandon(layer, begin, end);
    throw;
  }
}

void SparseFfn::abandon(size_t layer, size_t begin, size_t end) {
  reader_.reset();  // waits for reads that still write into the cache
  for (size_t i = begin; i < end; ++i) cache_.forget(layer, missing_.neurons[i].index);
}

void SparseFfn::compute(size_t layer, List& list, size_t begin, size_t end, size_t rows, ThreadPool& pool) {
  const size_t chunks = (end - begin + kChunk - 1) / kChunk;
  pool.parallel_for(chunks, 2, [&](size_t first, size_t last, size_t) {
    for (size_t c = first; c < last; ++c)
      compute_chunk(layer, list, begin + c * kChunk, std::min(end, begin + (c + 1) * kChunk), rows);
  });
}

// products[t][begin..end): f(gate x_t) * h(up x_t), up only where f(gate) is not zero for some token.
void SparseFfn::compute_chunk(size_t layer, List& chosen, size_t begin, size_t end, size_t rows) {
  const std::vector<Neuron>& list = chosen.neurons;
  const model::FfnFloor& floor = desc_.layers[layer].floor;
  const size_t n = end - begin;
  const auto dot = dots(k_, file_.layout.format);
  const uint8_t* vectors[kChunk];
  float gate[kMostSparseRows][kChunk], up[kChunk];
  size_t at[kChunk], live = 0;
  if (desc_.gated) {
    for (size_t i = 0; i < n; ++i) vectors[i] = list[begin + i].bundle + file_.layout.gate_offset();
    for (size_t t = 0; t < rows; ++t) {
      if (gate_known_)
        for (size_t i = 0; i < n; ++i) gate[t][i] = scores_.row(t)[list[begin + i].index];
      else
        dot(vectors, n, lanes_.row(t), gate[t]);
      if (!file_.gate_bias.empty())
        for (size_t i = 0; i < n; ++i) gate[t][i] += file_.gate_bias[layer][list[begin + i].index];
      k_.activate(desc_.act_gate, desc_.gate_threshold, n, gate[t]);
      model::drop_below(floor.gate, n, gate[t]);
    }
    for (size_t i = 0; i < n; ++i) {
      bool any = false;
      for (size_t t = 0; t < rows; ++t) any |= gate[t][i] != 0.0f;
      if (any) at[live++] = i;
    }
  } else {
    for (live = 0; live < n; ++live) at[live] = live;
  }
  for (size_t i = 0; i < live; ++i) vectors[i] = list[begin + at[i]].bundle;
  for (size_t t = 0; t < rows && live > 0; ++t) {
    dot(vectors, live, lanes_.row(t), up);
    if (!file_.up_bias.empty())
      for (size_t i = 0; i < live; ++i) up[i] += file_.up_bias[layer][list[begin + at[i]].index];
    if (desc_.gated)
      k_.activate(desc_.act_up, desc_.up_threshold, live, up);
    else
      k_.activate(desc_.act_gate, desc_.gate_threshold, live, up);
    float* out = chosen.products.data() + t * list.size() + begin;
    for (size_t i = 0; i < live; ++i) {
      const float product = desc_.gated ? gate[t][at[i]] * up[i] : up[i];
      const float least = floor.product.empty() ? 0.0f : floor.product[list[begin + at[i]].index];
      out[at[i]] = std::fabs(product) < least ? 0.0f : product;
    }
  }
}

void SparseFfn::record(size_t layer, const List& list, size_t rows) {
  for (size_t t = 0; t < rows; ++t)
    for (size_t i = 0; i < list.neurons.size(); ++i)
      if (list.products[t * list.neurons.size() + i] != 0.0f) record_->mark(t, layer, list.neurons[i].index);
}

// y[t] = sum of products[t][i] * down_i over both lists, merged in store order. Threads share the columns.
void SparseFfn::sum_down(size_t rows, ThreadPool& pool, Rows y) {
  const trace::Span span("down");
  const auto sum = sums(k_, file_.layout.format);
  const size_t hidden = desc_.hidden, blocks = (hidden + kBlockCols - 1) / kBlockCols;
  const auto &here = present_.neurons, &come = missing_.neurons;
  for (size_t t = 0; t < rows; ++t) {
    down_.clear();
    weights_.clear();
    const auto take = [&](const Neuron& neuron, float product) {
      if (product == 0.0f) return;
      down_.push_back(neuron.bundle + file_.layout.down_offset());
      weights_.push_back(product);
    };
    const float *known = present_.products.data() + t * here.size(),
                *later = missing_.products.data() + t * come.size();
    for (size_t i = 0, j = 0; i < here.size() || j < come.size();) {
      if (j == come.size() || (i < here.size() && here[i].index < come[j].index)) {
        take(here[i], known[i]);
        ++i;
      } else {
        take(come[j], later[j]);
        ++j;
      }
    }
    counters_.active += down_.size();
    pool.parallel_for(blocks, std::max<size_t>(1, blocks / (2 * pool.size())),
                      [&](size_t begin, size_t end, size_t) {
                        sum(down_.data(), weights_.data(), down_.size(), hidden, begin, end, y.row(t));
                      });
  }
}

SparseCounters SparseFfn::counters() const {
  SparseCounters c = counters_;
  c.reads += stream_.reads();
  c.bytes_read += stream_.bytes_read();
  c.stall_seconds += stream_.stall_seconds();
  return c;
}

size_t SparseFfn::bytes() const {
  return cache_.bytes() + (predictor_ ? predictor_->bytes() : 0) + stream_.bytes() + spill_.size() +
         h_memory_.size() + hq_.bytes() + score_memory_.size();
}

}  // namespace hotset::pipeline
