#include "cache/policy.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace hotset::cache {
namespace {

// A doubly linked list through the slots, most recent first; `size` is the sentinel.
class Lru : public EvictionPolicy {
 public:
  explicit Lru(size_t slots) : links_(slots + 1), time_(slots, 0), end_(static_cast<uint32_t>(slots)) {
    links_[end_] = {end_, end_};
  }
  void insert(uint32_t slot, uint64_t time) override {
    if (links_[slot].linked()) unlink(slot);
    link_first(slot);
    time_[slot] = time;
  }
  void touch(uint32_t slot, uint64_t time) override { insert(slot, time); }
  void evict(uint64_t in_use, std::vector<uint32_t>& slots) override {
    if (const uint32_t slot = oldest(in_use); slot != kNone) slots.push_back(take(slot));
  }
  void shrink(size_t slots) override {
    for (auto slot = static_cast<uint32_t>(slots); slot < end_; ++slot)
      if (links_[slot].linked()) take(slot);
  }

 protected:
  static constexpr uint32_t kNone = UINT32_MAX;
  // The slot touched longest ago, kNone if that is in use.
  uint32_t oldest(uint64_t in_use) const {
    const uint32_t slot = links_[end_].previous;
    return slot == end_ || time_[slot] >= in_use ? kNone : slot;
  }
  uint64_t time_of(uint32_t slot) const { return time_[slot]; }
  uint32_t take(uint32_t slot) {
    unlink(slot);
    links_[slot] = {};
    return slot;
  }

 private:
  struct Links {
    uint32_t previous = kNone, next = kNone;
    bool linked() const { return next != kNone; }
  };
  void unlink(uint32_t slot) {
    links_[links_[slot].previous].next = links_[slot].next;
    links_[links_[slot].next].previous = links_[slot].previous;
  }
  void link_first(uint32_t slot) {
    const uint32_t first = links_[end_].next;
    links_[slot] = {end_, first};
    links_[first].previous = links_[end_].next = slot;
  }
  std::vector<Links> links_;
  std::vector<uint64_t> time_;
  uint32_t end_;
};

// All that the oldest token used and no later one did goes together.
class Window final : public Lru {
 public:
  Window(size_t slots, size_t layers) : Lru(slots), layers_(layers) {}
  void evict(uint64_t in_use, std::vector<uint32_t>& slots) override {
    uint32_t slot = oldest(in_use);
    if (slot == kNone) return;
    for (const uint64_t end = end_of_token(time_of(slot)); slot != kNone && time_of(slot) <= end;
         slot = oldest(in_use))
      slots.push_back(take(slot));
  }

 private:
  // The time of the last layer of the token that has a layer at this time.
  uint64_t end_of_token(uint64_t time) const { return (time - 1) / layers_ * layers_ + layers_; }
  uint64_t layers_;
};

// CLOCK with counters up to `most`; most = 1 is the classic reference bit.
class Clock : public EvictionPolicy {
 public:
  Clock(size_t slots, uint8_t most) : count_(slots, 0), time_(slots, 0), most_(most) {}
  void insert(uint32_t slot, uint64_t time) override {
    count_[slot] = 1;
    time_[slot] = time;
  }
  void touch(uint32_t slot, uint64_t time) override {
    if (count_[slot] < most_) ++count_[slot];
    time_[slot] = time;
  }
  void evict(uint64_t in_use, std::vector<uint32_t>& slots) override {
    // Each round halves the counters, so after 8 of them all are 0 and only slots in use remain.
    for (size_t i = 0; i < count_.size() * 8; ++i) {
      const uint32_t slot = hand_;
      hand_ = hand_ + 1 == count_.size() ? 0 : hand_ + 1;
      if (time_[slot] >= in_use) continue;
      if (count_[slot] == 0) return slots.push_back(slot);
      count_[slot] /= 2;
    }
  }
  void shrink(size_t slots) override {
    count_.resize(slots);
    time_.resize(slots);
    if (hand_ >= slots) hand_ = 0;
  }

 private:
  std::vector<uint8_t> count_;
  std::vector<uint64_t> time_;
  uint8_t most_;
  uint32_t hand_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_policy(std::string_view name, size_t slots, size_t layers) {
  if (name == "lru") return std::make_unique<Lru>(slots);
  if (name == "clock") return std::make_unique<Clock>(slots, 1);
  if (name == "lfu") return std::make_unique<Clock>(slots, 15);
  if (name == "window") return std::make_unique<Window>(slots, layers);
  throw InvalidArgument("no eviction policy '" + std::string(name) +
                        "', choose one of lru, clock, lfu, window");
}

}  // namespace hotset::cache
