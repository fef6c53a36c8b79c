// The neurons of all layers that are in memory: a hot block per layer that stays, and cold slots shared by
// all layers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/memory.h"
#include "cache/policy.h"

namespace hotset::cache {

struct CacheCounters {
  uint64_t hits = 0, misses = 0, evictions = 0;  // of neurons asked for; hot ones count as hits
};

// Neurons are numbered in store order, hottest first, so the hot block of a layer is a prefix and one
// sequential read. Not thread-safe: one thread looks up and admits, the others only read what they were
// given.
class NeuronCache {
 public:
  // hot[layer]: neurons of the prefix that stay. slots: cold neurons in all. stride: bytes of a bundle.
  // Throws OutOfMemory, InvalidArgument.
  // layers_kept: 1, or 2 where the neurons of a layer are looked up while those of the one before are at
  // work.
  NeuronCache(size_t neurons, std::vector<uint32_t> hot, size_t slots, size_t stride, std::string_view policy,
              uint32_t layers_kept = 1);

  size_t layers() const { return hot_.size(); }
  size_t hot(size_t layer) const { return hot_[layer]; }
  std::span<uint8_t> hot_block(size_t layer) {
    return {hot_memory_.data() + hot_offset_[layer], hot_[layer] * stride_};
  }

  // Begins work on a layer: what is touched or admitted from here on stays until the next `layers_kept` calls
  // are over. times: how many layers it stands for.
  void begin(uint64_t times = 1) { time_ += times; }
  // The bundle if it is in memory (and marks it used), else null.
  const uint8_t* find(size_t layer, uint32_t neuron);
  // Whether it is in memory, without marking it.
  bool holds(size_t layer, uint32_t neuron) const {
    return neuron < hot_[layer] || slot_of(layer, neuron) != kAbsent;
  }
  // A place to read a missing neuron into; from now on find() gives it. Null if every slot is in use.
  uint8_t* admit(size_t layer, uint32_t neuron);
  // Takes an admitted neuron out again (its read failed).
  void forget(size_t layer, uint32_t neuron);
  // Gives up the last slots, all if there are no more: their neurons are evicted, in use or not, and their
  // memory, which must not be pinned, goes back to the system. Returns how many bytes of it had been used.
  size_t give_up(size_t slots);

  const CacheCounters& counters() const { return counters_; }
  size_t bytes() const { return hot_memory_.size() + cold_memory().size(); }
  size_t slots() const { return owner_.size(); }
  size_t used_slots() const { return used_; }           // that have held a neuron
  bool full() const { return used_ == owner_.size(); }  // all of them
  std::span<uint8_t> cold_memory() const { return {cold_memory_.data(), owner_.size() * stride_}; }

 private:
  static constexpr uint32_t kAbsent = UINT32_MAX;
  static constexpr uint64_t kNobody = UINT64_MAX;
  uint32_t& slot_of(size_t layer, uint32_t neuron) { return slot_[layer * neurons_ + neuron]; }
  uint32_t slot_of(size_t layer, uint32_t neuron) const { return slot_[layer * neurons_ + neuron]; }
  uint32_t take_slot();
  void make_room();
  void drop(uint32_t slot);

  size_t neurons_, stride_;
  std::vector<uint32_t> hot_;
  std::vector<size_t> hot_offset_;
  Buffer hot_memory_, cold_memory_;  // the latter of as many slots as there ever were
  std::vector<uint32_t> slot_;       // [layers][neurons], kAbsent = not a cold neuron in memory
  std::vector<uint64_t> owner_;      // [slots] layer * neurons + neuron
  uint32_t used_ = 0;                // slots ever given out; fresh ones first
  std::vector<uint32_t> free_;       // slots whose neurons made room
  std::unique_ptr<EvictionPolicy> policy_;
  uint64_t layers_kept_;
  // The first times are those of free slots; tokens begin after multiples of the number of layers.
  uint64_t time_ = layers_kept_ * hot_.size();
  CacheCounters counters_;
};

}  // namespace hotset::cache
