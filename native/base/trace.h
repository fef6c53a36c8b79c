// Where a step's time goes, for a timeline: spans of work, drive reads and counters, in a ring per thread.
//
// Goals: no cost worth naming when off (one relaxed load and a branch a span), no lock and no allocation when
// on. Non-goal: keeping everything; a ring that nobody empties forgets its oldest events and counts them.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <string>
#include <vector>

namespace hotset::trace {

enum class Kind : uint32_t { span, read, counter };
inline constexpr uint32_t kNoValue = UINT32_MAX;

struct Event {
  const char* name;     // of static storage
  uint64_t begin, end;  // ns of the monotonic clock; end of a counter: the bits of its value as a double
  Kind kind;
  uint32_t value;  // span: layer or kNoValue; read: bytes
};

inline std::atomic<bool> enabled{false};
inline bool on() { return enabled.load(std::memory_order_relaxed); }

uint64_t now();
// Appends to the ring of the calling thread; call only while on().
void record(const Event& event);
inline void count(const char* name, double value) {
  if (on()) record({name, now(), std::bit_cast<uint64_t>(value), Kind::counter, kNoValue});
}

// The innermost open span of this thread, null if there is none: what its helpers are said to work on.
const char* current();
// How this thread is called in a timeline; unnamed ones are numbered.
void name_thread(std::string name);

// Open from construction to destruction. A null name records nothing.
class Span {
 public:
  explicit Span(const char* name, uint32_t layer = kNoValue) {
    if (on() && name) open(name, layer);
  }
  ~Span() {
    if (name_) close();
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  void open(const char* name, uint32_t layer);
  void close();

  const char *name_ = nullptr, *outer_;
  uint64_t begin_;
  uint32_t layer_;
};

struct Taken {
  uint32_t thread;
  std::string thread_name;
  uint64_t lost;  // events overwritten since the last take()
  std::vector<Event> events;
};
// Empties the rings of all threads; may run while they write. Events of a span come when it closes.
std::vector<Taken> take();
double fullest();  // share of its ring that the busiest thread has filled since the last take()

}  // namespace hotset::trace
