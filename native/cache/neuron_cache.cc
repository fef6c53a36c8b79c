#include "cache/neuron_cache.h"

#include <algorithm>
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
      policy_(make_policy(policy, slots, hot_.size())),
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
  if (free_.empty()) make_room();
  if (free_.empty()) return kAbsent;
  const uint32_t slot = free_.back();
  free_.pop_back();
  return slot;
}

void NeuronCache::make_room() {
  policy_->evict(time_ + 1 - layers_kept_, free_);
  for (const uint32_t slot : free_) drop(slot);
}

void NeuronCache::drop(uint32_t slot) {
  if (owner_[slot] == kNobody) return;
  slot_[owner_[slot]] = kAbsent;
  owner_[slot] = kNobody;
  ++counters_.evictions;
}

size_t NeuronCache::give_up(size_t slots) {
  const size_t left = owner_.size() - std::min(slots, owner_.size());
  const size_t used = used_ - std::min<size_t>(used_, left);
  for (size_t i = 0; i < used; ++i) drop(static_cast<uint32_t>(left + i));
  std::erase_if(free_, [&](uint32_t slot) { return slot >= left; });
  owner_.resize(left);
  used_ -= static_cast<uint32_t>(used);
  policy_->shrink(left);
  return cold_memory_.release_from(left * stride_) ? used * stride_ : 0;
}

uint8_t* NeuronCache::admit(size_t layer, uint32_t neuron) {
  const uint32_t slot = take_slot();
  if (slot == kAbsent) return nullptr;
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
