#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <thread>

#include "base/cpu.h"
#include "base/error.h"

namespace hotset {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kMaxThreads = 1024;
// Phases of a step follow each other within microseconds; waking from a futex costs 5-50 us.
constexpr auto kSpin = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // yield is a no-op on most cores; isb waits about as long as x86's pause
#endif
}

// Counts the forks that led to this process. A child has no worker threads, so its copies of pools are dead.
std::atomic<uint32_t> forks{0};
uint32_t current_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  static_cast<void>(registered);
  return forks.load(std::memory_order_relaxed);
}

// Waits until `value` differs from `old`: spins if `spin`, then sleeps.
uint32_t await_change(const std::atomic<uint32_t>& value, uint32_t old, bool spin) {
  if (spin) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        const uint32_t now = value.load(std::memory_order_acquire);
        if (now != old) return now;
        pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

void pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);  // a refusal costs speed, not correctness
}

// Where worker i goes: the CPUs after the caller's, so that two processes with few threads rarely meet on
// one.
int cpu_of_worker(const std::vector<int>& cpus, size_t worker) {
  const auto here = std::find(cpus.begin(), cpus.end(), sched_getcpu());
  const size_t start = here == cpus.end() ? 0 : static_cast<size_t>(here - cpus.begin());
  return cpus[(start + worker) % cpus.size()];
}

}  // namespace

struct ThreadPool::Impl {
  // Written by the caller for the workers and by the workers for the caller: one cache line each.
  alignas(kCacheLine) std::atomic<uint32_t> generation{0};
  Fn fn = nullptr;
  void* ctx = nullptr;
  bool stop = false;
  alignas(kCacheLine) std::atomic<uint32_t> running{0};
  alignas(kCacheLine) std::vector<std::exception_ptr> errors;  // [threads]
  std::vector<std::thread> workers;                            // [threads - 1]
  uint32_t forks_at_start = current_forks();
  bool spin = true;

  explicit Impl(size_t threads, bool pin);
  ~Impl() { join(); }
  void start(size_t threads, bool pin, const std::vector<int>& cpus);
  void join();
  void call(size_t thread);
  void work(size_t thread);
  void publish();
  void rethrow();
};

ThreadPool::Impl::Impl(size_t threads, bool pin) : errors(threads) {
  const std::vector<int> cpus = allowed_cpus();
  spin = threads <= cpus.size();
  try {
    // Under a quota the scheduler may use any CPU; pinning would crowd all containers onto the first ones.
    start(threads, pin && spin && cgroup_cpu_quota() == 0, cpus);
  } catch (const std::system_error& e) {
    const size_t started = workers.size() + 1;
    join();
    throw OutOfMemory("cannot start " + std::to_string(threads) + " threads, only " +
                      std::to_string(started) + ": " + e.what());
  }
}

void ThreadPool::Impl::start(size_t threads, bool pin, const std::vector<int>& cpus) {
  workers.reserve(threads - 1);
  for (size_t i = 1; i < threads; ++i) {
    const int cpu = pin ? cpu_of_worker(cpus, i) : -1;
    workers.emplace_back([this, i, cpu] {
      if (cpu >= 0) pin_to(cpu);
      work(i);
    });
  }
}

void ThreadPool::Impl::join() {
  if (workers.empty()) return;
  stop = true;
  publish();
  for (std::thread& worker : workers) worker.join();
  workers.clear();
}

// Release: a worker that sees the new generation sees fn, ctx and stop.
void ThreadPool::Impl::publish() {
  generation.fetch_add(1, std::memory_order_release);
  generation.notify_all();
}

void ThreadPool::Impl::call(size_t thread) {
  try {
    fn(ctx, thread);
  } catch (...) {
    errors[thread] = std::current_exception();
  }
}

void ThreadPool::Impl::work(size_t thread) {
  for (uint32_t seen = 0;;) {
    seen = await_change(generation, seen, spin);
    if (stop) return;
    call(thread);
    if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) running.notify_one();
  }
}

void ThreadPool::Impl::rethrow() {
  std::exception_ptr first;
  for (std::exception_ptr& error : errors) {
    if (error && !first) first = error;
    error = nullptr;
  }
  if (first) std::rethrow_exception(first);
}

ThreadPool::ThreadPool(size_t threads, bool pin) {
  if (threads < 1 || threads > kMaxThreads)
    throw InvalidArgument("threads must be between 1 and " + std::to_string(kMaxThreads) + ", got " +
                          std::to_string(threads));
  impl_ = std::make_unique<Impl>(threads, pin);
}

ThreadPool::~ThreadPool() {
  // After a fork there is no thread to join, and a std::thread that was not joined would end the process.
  if (impl_->forks_at_start != current_forks()) static_cast<void>(impl_.release());
}

size_t ThreadPool::size() const { return impl_->errors.size(); }

void ThreadPool::run(Fn fn, void* ctx) {
  Impl& pool = *impl_;
  if (size() == 1) return fn(ctx, 0);
  if (pool.forks_at_start != current_forks())
    throw Error("threads do not survive fork(): load the model in the process that runs it");
  pool.fn = fn;
  pool.ctx = ctx;
  pool.running.store(static_cast<uint32_t>(pool.workers.size()), std::memory_order_relaxed);
  pool.publish();
  pool.call(0);
  for (uint32_t left; (left = pool.running.load(std::memory_order_acquire)) != 0;)
    await_change(pool.running, left, pool.spin);
  pool.rethrow();
}

}  // namespace hotset
