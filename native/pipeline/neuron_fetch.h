// Reads single neurons for the layer at hand and for the next one.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "io/reader.h"
#include "pipeline/neuron_file.h"

namespace hotset::pipeline {

// Reads are queued in two batches and sent as the drive takes them, those of the batch queued first before
// the others. Owned by one thread. After an error every read has ended, and the next add() starts with a new
// reader: the file may be whole again.
class NeuronFetch {
 public:
  static constexpr size_t kBatches = 2;
  // bytes: of each bundle that are read.
  NeuronFetch(const NeuronFile& file, size_t bytes, io::ReaderOptions io);

  // Makes reads into this memory, which must outlive this object or be unregistered while no read is under
  // way, cost less. Nothing happens if some is registered already.
  void register_memory(std::span<uint8_t> memory);
  void unregister_memory();
  // Queues the read of a neuron into `place`, which must stay until the batch is done.
  void add(size_t batch, size_t layer, uint32_t neuron, uint8_t* place);
  // Notes what has come and sends at most so many reads; does not wait. Throws IoError.
  void pump(size_t most);
  // Reads of the batch that have ended and were not handed out before, as the how many-th add() they were;
  // valid until the next call. Sends what there is room for, and waits only if none has ended. Empty once all
  // were handed out; the batch is empty then, too. Throws IoError.
  std::span<const uint32_t> arrived(size_t batch);
  size_t coming(size_t batch) const { return batches_[batch].coming(); }  // neither handed out nor ended
  // Returns when every read of the batch has ended. Throws IoError.
  void wait(size_t batch);
  void abandon();  // ends all reads

  uint64_t requests() const { return requests_; }      // that the drive got: neurons that are near are one
  uint64_t bytes_read() const { return bytes_read_; }  // with gaps
  double stall_seconds() const { return stall_seconds_; }  // waiting for reads

 private:
  struct Batch {
    std::vector<io::Read> reads;
    std::vector<uint32_t> ended;  // and not handed out yet
    size_t sent = 0, handed_out = 0;
    size_t coming() const { return reads.size() - handed_out - ended.size(); }
    void clear();
  };
  void wait_until(size_t batch, size_t coming);
  size_t upto_gap(const Batch& b, size_t most) const;
  void send(size_t most);
  void take(size_t min_done);

  const NeuronFile& file_;
  size_t bytes_;
  io::ReaderOptions io_;
  std::unique_ptr<io::Reader> reader_;
  std::span<uint8_t> memory_;  // registered
  std::array<Batch, kBatches> batches_;
  std::vector<uint32_t> arrived_;  // what arrived() returned
  size_t first_ = 0;               // batch that is sent first
  size_t in_flight_ = 0;           // of both
  uint64_t bytes_read_ = 0, requests_ = 0;
  double stall_seconds_ = 0;
};

}  // namespace hotset::pipeline
