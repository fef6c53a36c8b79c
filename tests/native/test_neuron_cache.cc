// NeuronCache and its policies against plain models: contents stay right, LRU evicts the least recent,
// nothing in use is evicted.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <random>
#include <set>

#include "base/error.h"
#include "cache/neuron_cache.h"
#include "check.h"

using namespace hotset::cache;

namespace {

constexpr size_t kStride = 64, kNeurons = 50;
constexpr uint64_t kBefore32Bits = (uint64_t{1} << 32) - 901;  // whole tokens of three layers
using Key = std::pair<size_t, uint32_t>;

uint64_t content(const Key& key) { return key.first * 1000003 + key.second * 7919 + 1; }

void fill(uint8_t* bundle, const Key& key) {
  const uint64_t value = content(key);
  std::memcpy(bundle, &value, sizeof(value));
}

bool holds_its_own(const uint8_t* bundle, const Key& key) {
  uint64_t value;
  std::memcpy(&value, bundle, sizeof(value));
  return value == content(key);
}

// start: layers that were begun before.
void random_use(const char* policy, unsigned seed, uint32_t layers_kept, uint64_t start) {
  std::mt19937 rng(seed);
  NeuronCache cache(kNeurons, {5, 0, 9}, 30, kStride, policy, layers_kept);
  cache.begin(start);
  for (size_t layer = 0; layer < 3; ++layer)
    for (uint32_t i = 0; i < cache.hot(layer); ++i)
      fill(cache.hot_block(layer).data() + i * kStride, {layer, i});
  using Given = std::vector<std::pair<Key, const uint8_t*>>;
  std::deque<Given> at_work;
  std::list<Key> recent;  // most recent first: what LRU must hold
  for (int step = 0; step < 3000; ++step) {
    const size_t layer = step % 3;
    cache.begin();
    std::set<uint32_t> wanted;
    for (size_t n = 1 + rng() % 12; wanted.size() < n;) wanted.insert(rng() % (rng() % 2 ? kNeurons : 20));
    Given given;
    for (uint32_t neuron : wanted) {
      const Key key{layer, neuron};
      const uint8_t* bundle = cache.find(layer, neuron);
      CHECK(cache.holds(layer, neuron) == (bundle != nullptr));
      if (std::string_view(policy) == "lru" && neuron >= cache.hot(layer))
        CHECK((std::find(recent.begin(), recent.end(), key) != recent.end()) == (bundle != nullptr));
      if (!bundle) {
        uint8_t* place = cache.admit(layer, neuron);
        if (!CHECK(place != nullptr)) return;
        fill(place, key);
        bundle = place;
      }
      given.push_back({key, bundle});
      if (neuron < cache.hot(layer)) continue;
      recent.remove(key);
      recent.push_front(key);
      if (recent.size() > 30) recent.pop_back();
    }
    at_work.push_front(given);
    at_work.resize(std::min<size_t>(at_work.size(), layers_kept));
    for (const Given& layer_given : at_work)  // none was evicted meanwhile
      for (const auto& [key, bundle] : layer_given) CHECK(holds_its_own(bundle, key));
    if (rng() % 50 == 0) {
      const Key key = given.back().first;
      if (key.second < cache.hot(key.first)) continue;
      cache.forget(key.first, key.second);
      CHECK(!cache.holds(key.first, key.second));
      if (layers_kept > 1 || std::string_view(policy) == "lru")
        return;  // the forgotten slot keeps its place in the order
    }
  }
  CHECK(cache.counters().hits > 0 && cache.counters().misses > cache.counters().evictions);
}

void full_of_used_ones() {
  for (const char* policy : {"lru", "clock", "lfu", "window"}) {
    NeuronCache cache(kNeurons, {0}, 4, kStride, policy);
    cache.begin();
    for (uint32_t i = 0; i < 4; ++i) CHECK(cache.admit(0, i) != nullptr);
    CHECK(cache.admit(0, 4) == nullptr);
    CHECK(!cache.holds(0, 4));
    cache.begin();
    CHECK(cache.find(0, 2) != nullptr);
    for (uint32_t i = 10; i < 13; ++i) CHECK(cache.admit(0, i) != nullptr);
    CHECK(cache.holds(0, 2) && cache.admit(0, 13) == nullptr);
    NeuronCache twice(kNeurons, {0, 0, 0}, 4, kStride, policy, 2);
    for (size_t layer = 0; layer < 2; ++layer) {
      twice.begin();
      for (uint32_t i = 0; i < 2; ++i) CHECK(twice.admit(layer, i) != nullptr);
    }
    CHECK(twice.admit(1, 2) == nullptr);
    twice.begin();
    for (uint32_t i = 0; i < 2; ++i) CHECK(twice.admit(2, i) != nullptr);
    CHECK(twice.admit(2, 2) == nullptr && !twice.holds(0, 0) && twice.holds(1, 0) && twice.holds(1, 1));
  }
}

// What a cache was given: the last place of each neuron, and the neurons by use, most recent first.
struct Given {
  std::map<Key, const uint8_t*> place;
  std::list<Key> recent;
  std::vector<Key> held_from(const uint8_t* begin, const NeuronCache& cache) const {
    std::vector<Key> keys;
    for (const auto& [key, at] : place)
      if (at >= begin && cache.holds(key.first, key.second)) keys.push_back(key);
    return keys;
  }
};

// Uses random neurons; what is missing must get a place among the slots that are left.
void use(NeuronCache& cache, std::mt19937& rng, int steps, Given& given, bool lru) {
  const size_t layers = cache.layers(), slots = cache.slots();
  for (int step = 0; step < steps; ++step) {
    cache.begin();
    const size_t layer = step % layers;
    std::set<uint32_t> wanted;
    for (size_t n = std::min<size_t>(1 + rng() % 8, slots / 2); wanted.size() < n;)
      wanted.insert(rng() % kNeurons);
    for (uint32_t neuron : wanted) {
      const Key key{layer, neuron};
      const uint8_t* bundle = cache.find(layer, neuron);
      if (lru) CHECK((std::ranges::find(given.recent, key) != given.recent.end()) == (bundle != nullptr));
      if (!bundle) {
        uint8_t* place = cache.admit(layer, neuron);
        CHECK(place != nullptr && place >= cache.cold_memory().data());
        CHECK(place + kStride <= cache.cold_memory().data() + slots * kStride);
        fill(place, key);
        given.place[key] = bundle = place;
      }
      CHECK(holds_its_own(bundle, key));
      given.recent.remove(key);
      given.recent.push_front(key);
      if (given.recent.size() > slots) given.recent.pop_back();
    }
  }
}

void gives_up(const char* policy, unsigned seed, int steps, size_t slots, uint32_t layers_kept) {
  std::mt19937 rng(seed);
  constexpr size_t kSlots = 40;
  NeuronCache cache(kNeurons, {0, 0, 0}, kSlots, kStride, policy, layers_kept);
  const bool lru = std::string_view(policy) == "lru";
  Given given;
  use(cache, rng, steps, given, lru);
  const size_t left = kSlots - slots, used = cache.used_slots(), evicted = cache.counters().evictions;
  CHECK((steps > 100) == cache.full());
  const std::vector<Key> lost = given.held_from(cache.cold_memory().data() + left * kStride, cache);
  const std::vector<Key> all = given.held_from(nullptr, cache);
  CHECK(cache.give_up(slots) == (used > left ? used - left : 0) * kStride);
  CHECK(cache.slots() == left && cache.used_slots() == std::min(used, left));
  CHECK(cache.bytes() == left * kStride && cache.cold_memory().size() == left * kStride);
  CHECK(cache.counters().evictions == evicted + lost.size());
  for (const Key& key : all)
    CHECK(cache.holds(key.first, key.second) == (std::ranges::find(lost, key) == lost.end()));
  for (const Key& key : lost) given.recent.remove(key);
  if (left == 0) {
    cache.begin();
    CHECK(cache.find(0, 0) == nullptr && cache.admit(0, 0) == nullptr);
    return;
  }
  use(cache, rng, 500, given, lru);
  CHECK(cache.full() && given.held_from(nullptr, cache).size() <= left);
}

void given_up_memory_is_the_systems_again() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), slots = 64;
  NeuronCache cache(slots, {0}, slots, page, "clock");
  cache.begin();
  for (uint32_t i = 0; i < slots; ++i) std::memset(cache.admit(0, i), 1, page);
  const std::span<uint8_t> memory = cache.cold_memory();
  const auto resident = [&] {
    std::vector<unsigned char> pages(slots);
    CHECK(mincore(memory.data(), memory.size(), pages.data()) == 0);
    return std::ranges::count_if(pages, [](unsigned char p) { return (p & 1) != 0; });
  };
  CHECK(resident() == slots);
  CHECK(cache.give_up(24) == 24 * page);
  CHECK(resident() == 40);
  CHECK(cache.find(0, 39)[page - 1] == 1 && cache.find(0, 40) == nullptr);
  cache.forget(0, 39);
  CHECK(cache.give_up(1) == page && cache.counters().evictions == 24);  // nobody's slot evicts nobody
  CHECK(cache.give_up(1000) == 39 * page && cache.slots() == 0 && resident() == 0);
  CHECK(cache.give_up(1) == 0);
}

void wrong_use() {
  CHECK_THROWS(hotset::InvalidArgument, NeuronCache(kNeurons, {51}, 4, kStride, "lru"));
  CHECK_THROWS(hotset::InvalidArgument, NeuronCache(kNeurons, {1}, 4, kStride, "belady"));
}

}  // namespace

int main() {
  for (const char* policy : {"lru", "clock", "lfu", "window"})
    for (unsigned seed = 0; seed < 10; ++seed)
      for (uint32_t kept : {1, 2})
        for (const uint64_t start : {uint64_t{0}, kBefore32Bits}) random_use(policy, seed, kept, start);
  for (const char* policy : {"lru", "clock", "lfu", "window"})
    for (unsigned seed = 0; seed < 5; ++seed)
      for (const int steps : {3, 1000})
        for (const size_t slots : {0, 1, 17, 24, 40})
          for (uint32_t kept : {1, 2})
            if (slots < 24 || kept == 1) gives_up(policy, seed, steps, slots, kept);
  given_up_memory_is_the_systems_again();
  full_of_used_ones();
  wrong_use();
  return check::report();
}
