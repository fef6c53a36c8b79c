// Fork-join threads for one token step: phases are microseconds apart, so workers spin before they sleep.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace hotset {

// n threads in all: the caller is thread 0. Workers are pinned to the CPUs the process may use (if pin).
// run() is not reentrant and belongs to one caller at a time. Workers spin for about 50 us after a phase
// (less when there are more threads than CPUs), then sleep on a futex, so an idle engine uses no CPU.
class ThreadPool {
 public:
  explicit ThreadPool(size_t threads, bool pin = true);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  size_t size() const;

  // Calls fn(ctx, thread) on every thread and returns when all have returned. An exception of the lowest
  // thread is rethrown.
  using Fn = void (*)(void* ctx, size_t thread);
  void run(Fn fn, void* ctx);

  // Calls fn(ctx, thread) here and on every worker that comes before the call here returns; then waits for
  // those. A worker that another process keeps from its CPU is not waited for.
  void share(Fn fn, void* ctx);

  // Calls body(begin, end, thread) over [0, n) in chunks of `grain`, taken dynamically (share()).
  template <class Body>
  void parallel_for(size_t n, size_t grain, Body&& body) {
    if (n == 0) return;
    if (size() == 1 || n <= grain) {  // still in chunks: callers size them to caches and scratch memory
      for (size_t b = 0; b < n; b += grain) body(b, b + grain < n ? b + grain : n, size_t{0});
      return;
    }
    struct Ctx {
      Body& body;
      std::atomic<size_t> next;
      size_t n, grain;
    } ctx{body, {0}, n, grain};
    share(
        [](void* p, size_t thread) {
          auto& c = *static_cast<Ctx*>(p);
          for (;;) {
            size_t b = c.next.fetch_add(c.grain, std::memory_order_relaxed);
            if (b >= c.n) return;
            c.body(b, b + c.grain < c.n ? b + c.grain : c.n, thread);
          }
        },
        &ctx);
  }

  // Calls body(part, thread) for every part, at most 64. Thread i takes part i first, so that what belongs to
  // a part stays in one core's caches from phase to phase; whoever is done takes parts that nobody has begun.
  template <class Body>
  void parallel_parts(size_t parts, Body&& body) {
    struct Ctx {
      Body& body;
      std::atomic<uint64_t> taken;
      size_t parts;
    } ctx{body, {0}, parts};
    share(
        [](void* p, size_t thread) {
          auto& c = *static_cast<Ctx*>(p);
          for (size_t i = 0; i < c.parts; ++i) {
            const size_t part = (thread + i) % c.parts;
            const uint64_t bit = uint64_t{1} << part;
            if (!(c.taken.fetch_or(bit, std::memory_order_relaxed) & bit)) c.body(part, thread);
          }
        },
        &ctx);
  }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hotset
