#include "cache/neuron_cache.h"

#include <string>

#include "base/error.h"

namespace hotset::cache {

NeuronCache::NeuronCache(size_t neurons, std::vector<uint32_t> hot, size_t slots, size_t stride,
                         std::string_view policy, uint32_t layers_kept)
    : neurons_(neurons),
      stride_(stride),
      hot_(std::move(hot)),
      slot_(hot_.size() * neurons, kAbsent),
      owner_(slots),
      policy_(make_policy(policy, slots)),
      layers_kept_(layers_kept) {
  size_t total = 0;
  for (uint32_t n : hot_) {
    if (n > neurons)
      throw InvalidArgument(std::to_string(n) + " hot neurons in a layer of " + std::to_string(neurons));
    hot_offset_.push_back(total);
    total += n * stride;
  }
  if (total > 0) hot_memory_ = Buffer(total);
  if (slots > 0) cold_memory_ = Buffer(slots * stride);
}

const uint8_t* NeuronCache::find(size_t layer, uint32_t neuron) {
  if (neuron < hot_[layer]) {
    ++counters_.hits;
    return hot_memory_.data() + hot_offset_[layer] + neuron * stride_;
  }
  const uint32_t slot = slot_of(layer, neuron);
  if (slot == kAbsent) {
    ++counters_.misses;
    return nullptr;
  }
  ++counters_.hits;
  policy_->touch(slot, time_);
  return cold_memory_.data() + slot * stride_;
}

uint32_t NeuronCache::take_slot() {
  if (used_ < owner_.size()) return used_++;
  const uint32_t slot = policy_->victim(time_ + 1 - layers_kept_);
  if (slot == EvictionPolicy::kNone || owner_[slot] == kNobody) return slot;
  slot_[owner_[slot]] = kAbsent;
  ++counters_.evictions;
  return slot;
}

uint8_t* NeuronCache::admit(size_t layer, uint32_t neuron) {
  const uint32_t slot = take_slot();
  if (slot == EvictionPolicy::kNone) return nullptr;
  owner_[slot] = layer * neurons_ + neuron;
  slot_of(layer, neuron) = slot;
  policy_->insert(slot, time_);
  return cold_memory_.data() + slot * stride_;
}

void NeuronCache::forget(size_t layer, uint32_t neuron) {
  uint32_t& slot = slot_of(layer, neuron);
  if (slot == kAbsent) return;
  owner_[slot] = kNobody;  // the policy comes to it like to any other
  slot = kAbsent;
}

}  // namespace hotset::cache
