// Which cold neuron makes room for a new one. Policies are replayed on recorded traces against Belady's
// optimum by `hotset profile`, so they know slots and times only, no weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace hotset::cache {

// Slots 0..n-1. Time is a counter that the cache advances once per layer of a step, so that 32 bits would be
// used up within weeks; slots touched lately are in use and must not be chosen. Not thread-safe.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual void insert(uint32_t slot, uint64_t time) = 0;  // the slot got a new neuron
  virtual void touch(uint32_t slot, uint64_t time) = 0;   // its neuron was used
  // Appends slots last touched before `in_use`, whose neurons go now: at least one if there is such a slot.
  virtual void evict(uint64_t in_use, std::vector<uint32_t>& slots) = 0;
  // Slots from this number on are no more.
  virtual void shrink(size_t slots) = 0;
};

// lru     least recently used, exactly (PowerInfer-2's choice)
// clock   one reference bit a slot, swept in a circle: close to LRU, a touch costs one store (Corbato, 1968)
// lfu     CLOCK over 4-bit use counters that are halved as the hand passes: recency and frequency
// window  what the last tokens used stays, as many tokens as fit; what none of them used goes at once (LLM in
// a
//         Flash, arXiv:2312.11514)
// layers: of the model; the time of its first one follows a multiple of it. Throws InvalidArgument.
std::unique_ptr<EvictionPolicy> make_policy(std::string_view name, size_t slots, size_t layers);

}  // namespace hotset::cache
