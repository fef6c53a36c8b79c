// Which cold neuron makes room for a new one. Policies are replayed on recorded traces against Belady's
// optimum by `hotset profile`, so they know slots and times only, no weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace hotset::cache {

// Slots 0..n-1. Time is a counter that the cache advances once per layer of a step; slots touched lately are
// in use and must not be chosen. Not thread-safe.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual void insert(uint32_t slot, uint32_t time) = 0;  // the slot got a new neuron
  virtual void touch(uint32_t slot, uint32_t time) = 0;   // its neuron was used
  // A slot last touched before `in_use`, or kNone if there is none.
  virtual uint32_t victim(uint32_t in_use) = 0;
  static constexpr uint32_t kNone = UINT32_MAX;
};

// lru     least recently used, exactly (PowerInfer-2's choice)
// clock   one reference bit a slot, swept in a circle: close to LRU, a touch costs one store (Corbato, 1968)
// lfu     CLOCK over 4-bit use counters that are halved as the hand passes: recency and frequency
std::unique_ptr<EvictionPolicy> make_policy(std::string_view name, size_t slots);  // throws InvalidArgument

}  // namespace hotset::cache
