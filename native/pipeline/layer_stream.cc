#include "pipeline/layer_stream.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace hotset::pipeline {
namespace {
// Near the drive's sequential rate, and small enough that several are in flight for each piece.
constexpr size_t kReadBytes = size_t{1} << 20;
}  // namespace

LayerStream::LayerStream(const NeuronFile& file, std::vector<uint32_t> first, size_t chunk, size_t ring,
                         const io::ReaderOptions& io)
    : file_(file), first_(std::move(first)), chunk_(chunk), io_(options_for(file, io)), ring_(ring) {
  io_.depth = std::max<size_t>(io.depth, ring * (chunk * file.layout.stride / kReadBytes + 1));
}

// What comes after the last piece started: the next chunk, else the first cold one of the next layer.
bool LayerStream::advance() {
  while (next_first_ >= file_.neurons) {
    if (++next_layer_ >= file_.layers()) return false;
    next_first_ = first_[next_layer_];
  }
  return true;
}

void LayerStream::restart(size_t layer, size_t first) {
  reader_.reset();  // waits for what is in flight
  reader_ = io::open_reader(file_.path, io_);
  if (memory_.size() == 0) memory_ = Buffer(ring_.size() * chunk_ * file_.layout.stride);
  head_ = filled_ = 0;
  next_layer_ = layer;
  next_first_ = first;
  at_end_ = false;
}

void LayerStream::start(size_t index) {
  Slot& slot = ring_[index];
  slot = {next_layer_, next_first_, std::min(chunk_ - next_first_ % chunk_, file_.neurons - next_first_), 0};
  next_first_ += slot.count;
  const size_t bytes = slot.count * file_.layout.stride;
  for (size_t at = 0; at < bytes; at += kReadBytes) {
    const size_t size = std::min(kReadBytes, bytes - at);
    const io::Read read{file_.position(slot.layer, slot.first) + at, {buffer(index) + at, size}, index};
    reader_->submit({&read, 1});
    ++slot.pending;
    ++reads_;
  }
  bytes_read_ += bytes;
}

void LayerStream::read_ahead() {
  while (filled_ < ring_.size() && !at_end_) {
    if (!advance()) {
      at_end_ = true;
      return;
    }
    start((head_ + filled_) % ring_.size());
    ++filled_;
  }
}

void LayerStream::await(size_t index) {
  const auto begin = std::chrono::steady_clock::now();
  uint64_t tags[16];
  while (ring_[index].pending > 0) {
    const size_t n = reader_->wait(tags, 1);
    for (size_t i = 0; i < n; ++i) --ring_[tags[i]].pending;
  }
  stall_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

LayerStream::Piece LayerStream::next(size_t layer, size_t first) {
  try {
    // The piece handed out last is free now.
    if (filled_ > 0 && !(ring_[head_].layer == layer && ring_[head_].first == first)) {
      head_ = (head_ + 1) % ring_.size();
      --filled_;
    }
    if (filled_ == 0 || ring_[head_].layer != layer || ring_[head_].first != first) restart(layer, first);
    read_ahead();
    await(head_);
  } catch (...) {
    reader_.reset();
    filled_ = 0;
    throw;
  }
  const Slot& slot = ring_[head_];
  return {buffer(head_), slot.first, slot.count};
}

}  // namespace hotset::pipeline
