#include "pipeline/neuron_fetch.h"

#include <algorithm>
#include <chrono>

namespace hotset::pipeline {

NeuronFetch::NeuronFetch(const NeuronFile& file, size_t bytes, io::ReaderOptions io)
    : file_(file),
      bytes_(bytes),
      io_(options_for(file.bundles(), std::move(io))),
      reader_(io::open_reader(file.path, io_)) {}

// Keeps the memory for the next layer.
void NeuronFetch::Batch::clear() {
  reads.clear();
  ended.clear();
  sent = handed_out = 0;
}

void NeuronFetch::register_memory(std::span<uint8_t> memory) {
  if (memory.empty() || !memory_.empty() || !reader_) return;
  reader_->register_memory(memory);
  memory_ = memory;
}

void NeuronFetch::unregister_memory() {
  if (reader_) reader_->unregister_memory();
  memory_ = {};
}

void NeuronFetch::add(size_t batch, size_t layer, uint32_t neuron, uint8_t* place) {
  if (!reader_) {
    reader_ = io::open_reader(file_.path, io_);
    if (!memory_.empty()) reader_->register_memory(memory_);
  }
  if (in_flight_ == 0 && batches_[1 - batch].reads.empty()) first_ = batch;
  auto& reads = batches_[batch].reads;
  reads.push_back({file_.position(layer, neuron), {place, bytes_}, reads.size() * kBatches + batch});
}

// How many reads of a batch to send next: about `most`, but none that goes with its neighbour as one request
// is left.
size_t NeuronFetch::upto_gap(const Batch& b, size_t most) const {
  const size_t waiting = b.reads.size() - b.sent;
  if (most == 0 || waiting <= most) return std::min(waiting, most);
  for (size_t n = most; n < std::min(waiting, 2 * most); ++n) {
    const io::Read &last = b.reads[b.sent + n - 1], &next = b.reads[b.sent + n];
    if (next.offset - (last.offset + last.dst.size()) > io_.gap_bytes) return n;
  }
  return std::min(waiting, 2 * most);
}

void NeuronFetch::send(size_t most) {
  for (size_t i = 0; i < kBatches; ++i) {
    Batch& b = batches_[(first_ + i) % kBatches];
    const size_t n = upto_gap(b, most);
    if (n == 0) continue;
    const uint64_t before = reader_->requests(), bytes = reader_->bytes();
    const size_t sent = reader_->submit({b.reads.data() + b.sent, n});
    b.sent += sent;
    in_flight_ += sent;
    requests_ += reader_->requests() - before;
    bytes_read_ += reader_->bytes() - bytes;
    most -= std::min(most, sent);
  }
}

void NeuronFetch::take(size_t min_done) {
  std::array<uint64_t, 256> ended;
  const size_t n = reader_->wait({ended.data(), std::min(in_flight_, ended.size())}, min_done);
  for (size_t i = 0; i < n; ++i)
    batches_[ended[i] % kBatches].ended.push_back(static_cast<uint32_t>(ended[i] / kBatches));
  in_flight_ -= n;
}

void NeuronFetch::pump(size_t most) {
  size_t waiting = 0;
  for (const Batch& b : batches_) waiting += b.reads.size() - b.sent;
  if (waiting == 0) return;
  if (in_flight_ > 0) take(0);
  // Each system call costs as much as a read; a drive with most of its queue full can do without the next
  // ones.
  const size_t room = reader_->depth() - std::min(reader_->depth(), in_flight_);
  if (room >= std::min(waiting, most)) send(most);
}

// Returns when no more reads of the batch than `coming` are on their way.
void NeuronFetch::wait_until(size_t batch, size_t coming) {
  Batch& b = batches_[batch];
  if (b.coming() <= coming) return;
  const auto start = std::chrono::steady_clock::now();
  first_ = batch;
  while (b.coming() > coming) {
    send(b.reads.size());
    take(1);
  }
  stall_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void NeuronFetch::wait(size_t batch) { wait_until(batch, 0); }

std::span<const uint32_t> NeuronFetch::arrived(size_t batch) {
  Batch& b = batches_[batch];
  arrived_.clear();
  if (b.coming() > 0) {
    first_ = batch;
    if (in_flight_ > 0) take(0);
    send(b.reads.size());
    if (b.ended.empty()) wait_until(batch, b.coming() - 1);
  }
  arrived_.swap(b.ended);
  b.handed_out += arrived_.size();
  if (arrived_.empty()) {
    b.clear();
    first_ = 1 - batch;
  }
  return arrived_;
}

void NeuronFetch::abandon() {
  reader_.reset();  // waits for reads that still write into their places
  for (Batch& b : batches_) b.clear();
  in_flight_ = 0;
}

}  // namespace hotset::pipeline
