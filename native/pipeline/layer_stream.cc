#include "pipeline/layer_stream.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace hotset::pipeline {
namespace {
// Near the drive's sequential rate, and small enough that several are in flight for each piece.
constexpr size_t kReadBytes = size_t{1} << 20;
constexpr size_t kBlock = 4096;
// With 4 to 8 of them a drive reads fastest; so many keep it busy for some 2 ms.
constexpr size_t kInFlight = 6;
}  // namespace

LayerStream::LayerStream(Units units, std::vector<uint32_t> first, size_t chunk, size_t ring,
                         const io::ReaderOptions& io, bool around)
    : units_(std::move(units)),
      first_(std::move(first)),
      chunk_(chunk),
      around_(around),
      io_(options_for(units_, io)),
      ring_(ring) {
  io_.depth = kInFlight;
}

// Goes on from the end of a layer to the first cold unit of the next one; false behind the last.
bool LayerStream::at_unit(size_t& layer, size_t& first) const {
  while (first >= units_.count) {
    if (++layer >= units_.offset.size()) {
      if (!around_) return false;
      layer = 0;
    }
    first = first_[layer];
  }
  return true;
}

// Makes the piece that begins there the oldest. The one handed out last is free, unless it is the same.
void LayerStream::come_to(size_t layer, size_t first) {
  if (handed_out_ && !at_head(layer, first)) {
    head_ = (head_ + 1) % ring_.size();
    --filled_;
    handed_out_ = false;
  }
  if (!at_head(layer, first)) restart(layer, first);
  read_ahead();
  send();
}

// Nobody wants what is on its way any more, but it writes to places that others get.
void LayerStream::settle() {
  queued_.clear();
  try {
    if (in_flight_ > 0) take(in_flight_);
  } catch (const IoError&) {
    abandon();
  }
}

void LayerStream::restart(size_t layer, size_t first) {
  settle();
  if (!reader_) reader_ = io::open_reader(units_.path, io_);
  if (memory_.size() == 0) memory_ = Buffer(ring_.size() * chunk_ * units_.stride);
  head_ = filled_ = 0;
  handed_out_ = false;
  next_layer_ = layer;
  next_first_ = first;
  at_end_ = false;
}

void LayerStream::start(size_t index) {
  Slot& slot = ring_[index];
  slot = {next_layer_, next_first_, std::min(chunk_ - next_first_ % chunk_, units_.count - next_first_), 0};
  next_first_ += slot.count;
  const size_t bytes = slot.count * units_.stride;
  const uint64_t offset = units_.offset[slot.layer] + slot.first * units_.stride;
  // Alike, as all take their share of the drive's time.
  const size_t reads = std::max<size_t>((bytes + kReadBytes / 2) / kReadBytes, 1);
  const size_t each = (bytes / reads + kBlock - 1) / kBlock * kBlock;
  for (size_t at = 0; at < bytes; at += each) {
    const size_t size = std::min(each, bytes - at);
    queued_.push_back({offset + at, {buffer(index) + at, size}, index});
    ++slot.pending;
    ++reads_;
  }
  bytes_read_ += bytes;
}

void LayerStream::read_ahead() {
  while (filled_ < ring_.size() && !at_end_) {
    if (!at_unit(next_layer_, next_first_)) {
      at_end_ = true;
      return;
    }
    start((head_ + filled_) % ring_.size());
    ++filled_;
  }
}

void LayerStream::send() {
  for (; !queued_.empty() && in_flight_ < kInFlight; ++in_flight_) {
    reader_->submit({&queued_.front(), 1});
    queued_.pop_front();
  }
}

void LayerStream::take(size_t min_done) {
  uint64_t tags[kInFlight];
  const size_t n = reader_->wait({tags, in_flight_}, min_done);
  for (size_t i = 0; i < n; ++i) --ring_[tags[i]].pending;
  in_flight_ -= n;
}

void LayerStream::await(size_t index) {
  const auto begin = std::chrono::steady_clock::now();
  while (ring_[index].pending > 0) {
    take(1);
    send();
  }
  stall_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void LayerStream::abandon() {
  reader_.reset();  // waits for what is in flight
  filled_ = in_flight_ = 0;
  handed_out_ = false;
  queued_.clear();
}

// After an error every read has ended, and the next call starts over.
template <class Work>
void LayerStream::guarded(Work work) {
  try {
    work();
  } catch (...) {
    abandon();
    throw;
  }
}

void LayerStream::pump() {
  if (in_flight_ == 0) return;  // then nothing is queued
  guarded([&] {
    take(0);
    send();
  });
}

void LayerStream::prepare(size_t layer, size_t first) {
  if (at_unit(layer, first)) guarded([&] { come_to(layer, first); });
}

LayerStream::Piece LayerStream::next(size_t layer, size_t first) {
  guarded([&] {
    come_to(layer, first);
    await(head_);
    handed_out_ = true;
  });
  const Slot& slot = ring_[head_];
  return {buffer(head_), slot.first, slot.count};
}

}  // namespace hotset::pipeline
