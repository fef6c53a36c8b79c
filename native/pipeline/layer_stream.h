// Reads layer after layer in file order, in large pieces ahead of the compute: the cold neurons that a prompt
// needs, whose many tokens use nearly all of them, or the gates of a token.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "base/memory.h"
#include "io/reader.h"
#include "pipeline/neuron_file.h"

namespace hotset::pipeline {

// A ring of buffers that is filled across layer borders, so the drive works during attention too. Few of its
// reads are with the drive at a time, which shares its rate among them: what is wanted first comes first, and
// pump() sends the next. One thread.
class LayerStream {
 public:
  // first[layer]: units before it are in memory and not read. chunk: units per piece; ring: pieces in
  // flight. around: the first layer follows the last one, as for token after token.
  LayerStream(Units units, std::vector<uint32_t> first, size_t chunk, size_t ring,
              const io::ReaderOptions& io, bool around = false);

  // The units [first, first + count) of a layer; valid until the next call of next() or prepare(). A piece
  // ends at a multiple of the chunk, and before `data` there is room for the units that come before it in
  // that chunk. Asked for in order they come from reads already under way; any other order starts over.
  struct Piece {
    uint8_t* data;
    size_t first, count;
  };
  Piece next(size_t layer, size_t first);
  // Starts what next() will be asked for first, from there on or, at the end of a layer, from the next one,
  // unless it is under way already. Throws IoError.
  void prepare(size_t layer, size_t first);
  // Notes what has come and sends what may follow; does not wait. To be called amid other work, every
  // millisecond or so. Throws IoError.
  void pump();
  // Ends all reads; the next call starts over. For when what came was wrong.
  void abandon();
  uint64_t bytes_read() const { return bytes_read_; }
  uint64_t reads() const { return reads_; }
  double stall_seconds() const { return stall_seconds_; }
  size_t bytes() const { return memory_.size(); }

 private:
  struct Slot {
    size_t layer = 0, first = 0, count = 0;
    size_t pending = 0;  // reads not yet ended
  };
  bool at_unit(size_t& layer, size_t& first) const;
  void come_to(size_t layer, size_t first);
  void restart(size_t layer, size_t first);
  void settle();
  void read_ahead();
  void start(size_t slot);
  void send();
  void take(size_t min_done);
  void await(size_t slot);
  template <class Work>
  void guarded(Work work);
  bool at_head(size_t layer, size_t first) const {
    return filled_ > 0 && ring_[head_].layer == layer && ring_[head_].first == first;
  }
  uint8_t* buffer(size_t slot) {
    return memory_.data() + (slot * chunk_ + ring_[slot].first % chunk_) * units_.stride;
  }

  Units units_;
  std::vector<uint32_t> first_;
  size_t chunk_;
  bool around_;
  io::ReaderOptions io_;
  Buffer memory_;
  std::unique_ptr<io::Reader> reader_;  // after what it reads into: it waits for what is under way
  std::vector<Slot> ring_;
  std::deque<io::Read> queued_;  // not sent yet; tag: slot
  size_t in_flight_ = 0;
  size_t head_ = 0, filled_ = 0;            // oldest slot, slots in use
  bool handed_out_ = false;                 // the oldest
  size_t next_layer_ = 0, next_first_ = 0;  // what is read next
  bool at_end_ = true;
  uint64_t bytes_read_ = 0, reads_ = 0;
  double stall_seconds_ = 0;
};

}  // namespace hotset::pipeline
