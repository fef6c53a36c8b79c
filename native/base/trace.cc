#include "base/trace.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>

#include "base/memory.h"

namespace hotset::trace {
namespace {

// 2 MiB a thread: 20 tokens of a 7B whose misses are read one by one.
constexpr uint64_t kEvents = uint64_t{1} << 16;
constexpr uint64_t kWords = 4;

// One writer, its thread; take() reads while it writes. All words are atomic, so what is overwritten
// meanwhile is torn but defined, and take() drops it.
class Ring {
 public:
  Ring(uint32_t thread, std::string name)
      : thread_(thread), name_(std::move(name)), memory_(kEvents * kWords * sizeof(uint64_t), false) {}

  void write(const Event& e) {
    const uint64_t at = written_.load(std::memory_order_relaxed);
    const uint64_t words[kWords] = {reinterpret_cast<uintptr_t>(e.name), e.begin, e.end,
                                    uint64_t{e.value} << 32 | static_cast<uint32_t>(e.kind)};
    for (uint64_t i = 0; i < kWords; ++i) word(at, i).store(words[i], std::memory_order_relaxed);
    written_.store(at + 1, std::memory_order_release);
  }

  Taken take() {
    const uint64_t end = written_.load(std::memory_order_acquire);
    const uint64_t begin = std::max(taken_, oldest(end));
    Taken out{thread_, name_, 0, {}};
    out.events.reserve(end - begin);
    for (uint64_t i = begin; i < end; ++i) out.events.push_back(read(i));
    std::atomic_thread_fence(std::memory_order_acquire);
    // The writer may be in the middle of the event after its last one, which lies where the oldest was.
    const uint64_t intact = oldest(written_.load(std::memory_order_relaxed) + 1);
    if (intact > begin)
      out.events.erase(out.events.begin(),
                       out.events.begin() + static_cast<ptrdiff_t>(std::min(intact, end) - begin));
    out.lost = end - taken_ - out.events.size();
    taken_ = end;
    return out;
  }

  double filled() const {
    return static_cast<double>(written_.load(std::memory_order_relaxed) - taken_) / kEvents;
  }
  void rename(std::string name) { name_ = std::move(name); }

 private:
  static uint64_t oldest(uint64_t end) { return end > kEvents ? end - kEvents : 0; }
  std::atomic_ref<uint64_t> word(uint64_t event, uint64_t i) {
    return std::atomic_ref(reinterpret_cast<uint64_t*>(memory_.data())[event % kEvents * kWords + i]);
  }
  Event read(uint64_t at) {
    uint64_t words[kWords];
    for (uint64_t i = 0; i < kWords; ++i) words[i] = word(at, i).load(std::memory_order_relaxed);
    return {reinterpret_cast<const char*>(words[0]), words[1], words[2],
            static_cast<Kind>(static_cast<uint32_t>(words[3])), static_cast<uint32_t>(words[3] >> 32)};
  }

  uint32_t thread_;
  std::string name_;
  Buffer memory_;
  std::atomic<uint64_t> written_{0};
  uint64_t taken_ = 0;
};

struct Rings {
  std::mutex mutex;  // of the list, not of what threads write
  std::vector<std::shared_ptr<Ring>> all;
  uint32_t threads = 0;
};

Rings& rings() {
  static auto* all = new Rings;  // outlives every thread
  return *all;
}

struct Thread {
  std::string name;
  const char* current = nullptr;
  std::shared_ptr<Ring> ring;  // made with the first event: a trace never taken costs no memory
};
thread_local Thread self;

Ring& ring() {
  if (!self.ring) {
    Rings& r = rings();
    const std::lock_guard lock(r.mutex);
    const uint32_t id = ++r.threads;
    self.ring = std::make_shared<Ring>(id, self.name.empty() ? "thread " + std::to_string(id) : self.name);
    r.all.push_back(self.ring);
  }
  return *self.ring;
}

}  // namespace

uint64_t now() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

void record(const Event& event) { ring().write(event); }

const char* current() { return self.current; }

void name_thread(std::string name) {
  const std::lock_guard lock(rings().mutex);
  self.name = std::move(name);
  if (self.ring) self.ring->rename(self.name);
}

void Span::open(const char* name, uint32_t layer) {
  name_ = name;
  layer_ = layer;
  outer_ = self.current;
  self.current = name;
  begin_ = now();
}

void Span::close() {
  record({name_, begin_, now(), Kind::span, layer_});
  self.current = outer_;
}

std::vector<Taken> take() {
  Rings& r = rings();
  const std::lock_guard lock(r.mutex);
  std::vector<Taken> out;
  std::erase_if(r.all, [&](const auto& ring) {
    const bool ended = ring.use_count() == 1;  // its thread has
    out.push_back(ring->take());
    if (!out.back().events.empty() || out.back().lost > 0) return false;
    out.pop_back();
    return ended;
  });
  return out;
}

double fullest() {
  Rings& r = rings();
  const std::lock_guard lock(r.mutex);
  double most = 0;
  for (const auto& ring : r.all) most = std::max(most, ring->filled());
  return most;
}

}  // namespace hotset::trace
