// NeuronCache and its policies against plain models: contents stay right, LRU evicts the least recent,
// nothing in use is evicted.
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

void random_use(const char* policy, unsigned seed, uint32_t layers_kept) {
  std::mt19937 rng(seed);
  NeuronCache cache(kNeurons, {5, 0, 9}, 30, kStride, policy, layers_kept);
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
        CHECK(place != nullptr);
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

void wrong_use() {
  CHECK_THROWS(hotset::InvalidArgument, NeuronCache(kNeurons, {51}, 4, kStride, "lru"));
  CHECK_THROWS(hotset::InvalidArgument, NeuronCache(kNeurons, {1}, 4, kStride, "belady"));
}

}  // namespace

int main() {
  for (const char* policy : {"lru", "clock", "lfu", "window"})
    for (unsigned seed = 0; seed < 10; ++seed)
      for (uint32_t kept : {1, 2}) random_use(policy, seed, kept);
  full_of_used_ones();
  wrong_use();
  return check::report();
}
