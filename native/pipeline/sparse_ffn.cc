#include "pipeline/sparse_ffn.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/trace.h"

namespace hotset::pipeline {

using model::Input;
using model::pad_to;
using model::Rows;
using quant::Format;

namespace {

// Pieces in flight: while hot neurons are loaded; and in a pass, whose hot neurons give the drive time to run
// ahead.
constexpr size_t kLoadRing = 3, kRing = 8;

Rows make_rows(Buffer& memory, size_t rows, size_t cols) {
  const size_t ld = pad_to(cols, quant::kColBlock);
  memory = Buffer(rows * ld * sizeof(float));
  return {reinterpret_cast<float*>(memory.data()), ld};
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

// Missing neurons of one layer that must find a place: all where those not chosen are known to be zero.
size_t most_missing(const NeuronFile& file, const SparseOptions& options,
                    const predictor::Predictor* predictor) {
  const size_t hot = *std::min_element(options.hot.begin(), options.hot.end());
  const size_t cold = file.neurons - std::min(hot, file.neurons);
  return !predictor || predictor->knows_gates() ? cold : std::min(cold, options.spill);
}

// Those of one layer that find every cold slot in use. Looking ahead, two layers share the slots, and the
// first may have taken all of them.
size_t most_spilled(size_t missing, const SparseOptions& options) {
  const size_t at_work = missing * (options.ahead ? 2 : 1);
  return std::min(missing, at_work - std::min(at_work, options.cold_slots));
}

// Cold slots without which more would be spilled than there are places.
size_t least_slots(size_t missing, size_t spilled, const SparseOptions& options) {
  return spilled == missing ? 0 : missing * (options.ahead ? 2 : 1) - spilled;
}

size_t used_bytes(const quant::NeuronLayout& layout, bool gate_known) {
  return gate_known ? layout.gate_offset() : layout.bytes();
}

// What direct I/O must read for them, at most a whole bundle with its padding.
size_t held_bytes(const NeuronFile& file, const io::ReaderOptions& io, size_t used) {
  const size_t alignment =
      std::max<size_t>(io::open_reader(file.path, options_for(file.bundles(), io))->alignment(), 64);
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
      gate_known_(desc.gated && predictor_ && predictor_->knows_gates()),
      used_bytes_(used_bytes(checked(file_, options_, predictor_ != nullptr).layout, gate_known_)),
      held_bytes_(held_bytes(file_, options_.io, used_bytes_)),
      cache_(file_.neurons, options_.hot, options_.cold_slots, held_bytes_, options_.policy,
             options_.ahead ? 2 : 1),
      spill_slots_(most_spilled(most_missing(file_, options_, predictor_.get()), options_)),
      least_slots_(least_slots(most_missing(file_, options_, predictor_.get()), spill_slots_, options_)),
      spill_(spill_slots_ * held_bytes_ * (options_.ahead ? 2 : 1)),
      fetch_(file_, held_bytes_, options_.io),
      stream_(file_.bundles(), options_.hot, kPieceNeurons, kRing, options_.io),
      products_(desc_, file_, k_),
      lanes_(kMostSparseRows, desc.hidden),
      down_(k_, file_.layout.format, desc.hidden),
      dense_(desc_, file_, k_, max_rows, kPieceNeurons) {
  if (file_.layout.hidden != static_cast<size_t>(desc.hidden) ||
      file_.neurons != static_cast<size_t>(desc.ffn))
    throw InvalidArgument("sparse FFN: the neurons are " + std::to_string(file_.neurons) + " of " +
                          std::to_string(file_.layout.hidden) + ", the model wants " +
                          std::to_string(desc.ffn) + " of " + std::to_string(desc.hidden));
  check_gates();
  if (predictor_) scores_ = make_rows(score_memory_, kernels::kTile, file_.neurons);
  worth_.resize(file_.neurons);
  load_hot();
}

// A pass over all neurons wants the gates of those that stay in memory, which neither are there nor streamed.
void SparseFfn::check_gates() const {
  if (!gate_known_) return;
  if (!predictor_->gate(0) && *std::max_element(options_.hot.begin(), options_.hot.end()) > 0)
    throw InvalidArgument("sparse FFN: where gates are read for every token no neurons are hot");
  if (file_.crc32c_no_gate.size() != file_.layers() ||
      std::any_of(file_.crc32c_no_gate.begin(), file_.crc32c_no_gate.end(),
                  [&](const auto& sums) { return sums.size() != file_.neurons; }))
    throw InvalidArgument("sparse FFN: no checksums of the neurons without their gates");
}

// In pieces, as memory may hold less of each bundle than the file.
void SparseFfn::load_hot() {
  LayerStream stream(file_.bundles(), std::vector<uint32_t>(file_.layers(), 0), kPieceNeurons, kLoadRing,
                     options_.io);
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
  scratch_.resize(std::max(scratch_.size(), pool.size()));
  if (layer == 0) drop_unused();
  if (in.rows <= kMostSparseRows && (draft || !options_.draft_only))
    run_sparse(layer, in, pool, y);
  else
    run_dense(layer, in, pool, y);
}

void SparseFfn::run_dense(size_t layer, const Input& in, ThreadPool& pool, Rows y) {
  try {
    pass(layer, in, pool, y);
  } catch (...) {
    stream_.abandon();  // what did not match its checksum is read again
    throw;
  }
}

// Every neuron: those that stay in memory, then the others as they stream by.
void SparseFfn::pass(size_t layer, const Input& in, ThreadPool& pool, Rows y) {
  const size_t hot = cache_.hot(layer), stride = file_.layout.stride;
  const uint8_t* block = cache_.hot_block(layer).data();
  const model::Matrix* gate = gate_known_ ? predictor_->gate(layer) : nullptr;
  const auto read_on = [&] { stream_.pump(); };
  stream_.prepare(layer, hot);
  dense_.begin(in, gate != nullptr, pool, y);
  cache_.begin();
  size_t room = cache_.slots() / file_.layers();  // neurons that may be kept
  // Pieces end at multiples of their size, as sums round by such windows: the last hot ones share theirs with
  // the first cold ones.
  const size_t last = hot == file_.neurons ? hot : hot / kPieceNeurons * kPieceNeurons;
  for (size_t first = 0; first < last; first += kPieceNeurons) {
    const size_t count = std::min(kPieceNeurons, last - first);
    dense_.add({layer, first, gate, {block + first * held_bytes_, held_bytes_, count}, {}}, in, pool, y,
               *record_, read_on);
  }
  DensePass::Run before{block + last * held_bytes_, held_bytes_, hot - last};
  for (size_t first = hot; first < file_.neurons;) {
    const auto read = stream_.next(layer, first);
    {
      const trace::Span span("check");
      pool.parallel_for(read.count, 32, [&](size_t begin, size_t end, size_t) {
        for (size_t i = begin; i < end; ++i)
          check_bundle(file_, layer, first + i, read.data + i * stride, file_.layout.bytes(),
                       file_.crc32c[layer][first + i]);
      });
    }
    dense_.add({layer, first - before.count, gate, before, {read.data, stride, read.count}}, in, pool, y,
               *record_, read_on);
    warm(layer, read, before.count, in.rows, room);
    before.count = 0;
    first += read.count;
  }
  dense_.end(in.rows, pool, y);
}

// Keeps what the last tokens used as it streams by, for the tokens that come next; a layer gets its share of
// slots. `hot`: neurons in memory that were computed before it as one piece.
void SparseFfn::warm(size_t layer, const LayerStream::Piece& piece, size_t hot, size_t rows, size_t& room) {
  const trace::Span span("warm");
  for (size_t t = rows - std::min(rows, kWarmRows); t < rows; ++t)
    for (const uint16_t i : dense_.active(t)) {
      const auto neuron = static_cast<uint32_t>(piece.first + i - hot);
      if (i < hot || room == 0 || cache_.find(layer, neuron)) continue;
      uint8_t* place = cache_.admit(layer, neuron);
      if (!place) return;
      std::memcpy(place, piece.data + (i - hot) * file_.layout.stride, held_bytes_);
      --room;
    }
}

size_t SparseFfn::shrink_cold(size_t slots) {
  slots = std::min(slots, cache_.slots() - std::min(cache_.slots(), least_slots_));
  if (slots == 0) return 0;
  drop_unused();
  fetch_.unregister_memory();  // pinned pages would stay
  return cache_.give_up(slots);
}

SparseCounters SparseFfn::counters() const {
  SparseCounters c = counters_;
  c.reads = fetch_.requests() + stream_.reads();
  c.bytes_read = fetch_.bytes_read() + stream_.bytes_read();
  c.stall_seconds = fetch_.stall_seconds() + stream_.stall_seconds();
  if (predictor_) {
    const auto gates = predictor_->read();
    c.reads += gates.requests;
    c.bytes_read += gates.bytes;
    c.stall_seconds += gates.stall_seconds;
  }
  return c;
}

size_t SparseFfn::bytes() const {
  return cache_.bytes() + (predictor_ ? predictor_->bytes() : 0) + stream_.bytes() + spill_.size() +
         lanes_.bytes() + dense_.bytes() + score_memory_.size();
}

}  // namespace hotset::pipeline
