// Fork-join threads for one token step: phases are microseconds apart, so workers spin before they sleep.
#pragma once

#include <cstddef>
#include <memory>

namespace hotset {

// n threads in all: the caller is thread 0. Workers are pinned to the CPUs the process may use (if pin).
// Not reentrant; belongs to one caller at a time. Workers spin for about 50 us after a phase (not at all when
// there are more threads than CPUs), then sleep on a futex, so an idle engine uses no CPU.
//
// The work of a phase is cut into chunks, and every thread owns a span of neighbouring ones: a contiguous
// stretch of weights, the same in each phase, that stays in its core's caches. Whoever is done takes chunks
// of others, so a worker that another process keeps from its CPU is not waited for, unless it is amid one.
class ThreadPool {
 public:
  explicit ThreadPool(size_t threads, bool pin = true);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  size_t size() const;

  // Calls body(begin, end, thread) over [0, n) in chunks of `grain` and returns when all are done. An
  // exception of the lowest thread that saw one is rethrown; the other chunks are computed nevertheless.
  template <class Body>
  void parallel_for(size_t n, size_t grain, Body&& body) {
    if (n == 0) return;
    const size_t least = n / kMostChunks + 1;
    if (grain < least) grain = least;
    const auto chunk = [&](size_t begin, size_t thread) {
      body(begin, begin + grain < n ? begin + grain : n, thread);
    };
    if (size() == 1 || n <= grain) {  // still in chunks: callers size them to caches and scratch memory
      for (size_t begin = 0; begin < n; begin += grain) chunk(begin, 0);
      return;
    }
    each_chunk((n + grain - 1) / grain, [&](size_t i, size_t thread) { chunk(i * grain, thread); });
  }

  // Calls body(part, thread) for every part. With as many parts as threads, thread i takes part i unless it
  // is late, so that what belongs to a part stays in one core's caches from phase to phase.
  template <class Body>
  void parallel_parts(size_t parts, Body&& body) {
    each_chunk(parts, body);
  }

 private:
  static constexpr size_t kMostChunks = size_t{1} << 23;
  using Fn = void (*)(void* ctx, size_t chunk, size_t thread);
  template <class Body>
  void each_chunk(size_t chunks, Body&& body) {
    auto* ctx = std::addressof(body);
    run([](void* p, size_t chunk, size_t thread) { (*static_cast<decltype(ctx)>(p))(chunk, thread); },
        const_cast<void*>(static_cast<const void*>(ctx)), chunks);
  }
  void run(Fn fn, void* ctx, size_t chunks);

  struct Slot;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hotset
