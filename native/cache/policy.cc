#include "cache/policy.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"

namespace hotset::cache {
namespace {

// A doubly linked list through the slots, most recent first; `size` is the sentinel.
class Lru : public EvictionPolicy {
 public:
  explicit Lru(size_t slots) : links_(slots + 1), time_(slots, 0), end_(static_cast<uint32_t>(slots)) {
    links_[end_] = {end_, end_};
  }
  void insert(uint32_t slot, uint32_t time) override {
    if (links_[slot].linked()) unlink(slot);
    link_first(slot);
    time_[slot] = time;
  }
  void touch(uint32_t slot, uint32_t time) override { insert(slot, time); }
  uint32_t victim(uint32_t in_use) override {
    const uint32_t slot = links_[end_].previous;
    return slot == end_ || time_[slot] >= in_use ? kNone : slot;
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
  std::vector<uint32_t> time_;
  uint32_t end_;
};

// CLOCK with counters up to `most`; most = 1 is the classic reference bit.
class Clock : public EvictionPolicy {
 public:
  Clock(size_t slots, uint8_t most) : count_(slots, 0), time_(slots, 0), most_(most) {}
  void insert(uint32_t slot, uint32_t time) override {
    count_[slot] = 1;
    time_[slot] = time;
  }
  void touch(uint32_t slot, uint32_t time) override {
    if (count_[slot] < most_) ++count_[slot];
    time_[slot] = time;
  }
  uint32_t victim(uint32_t in_use) override {
    // Each round halves the counters, so after 8 of them all are 0 and only slots in use remain.
    for (size_t i = 0; i < count_.size() * 8; ++i) {
      const uint32_t slot = hand_;
      hand_ = hand_ + 1 == count_.size() ? 0 : hand_ + 1;
      if (time_[slot] >= in_use) continue;
      if (count_[slot] == 0) return slot;
      count_[slot] /= 2;
    }
    return kNone;
  }

 private:
  std::vector<uint8_t> count_;
  std::vector<uint32_t> time_;
  uint8_t most_;
  uint32_t hand_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_policy(std::string_view name, size_t slots) {
  if (name == "lru") return std::make_unique<Lru>(slots);
  if (name == "clock") return std::make_unique<Clock>(slots, 1);
  if (name == "lfu") return std::make_unique<Clock>(slots, 15);
  throw InvalidArgument("no eviction policy '" + std::string(name) + "', choose one of lru, clock, lfu");
}

}  // namespace hotset::cache
