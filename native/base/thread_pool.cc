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
#include "base/trace.h"

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

// Spins for at most kSpin; returns whether `done` came true.
template <class Done>
bool spin_until(Done done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
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
  const auto changed = [&] { return value.load(std::memory_order_acquire) != old; };
  if (!spin || !spin_until(changed)) value.wait(old, std::memory_order_acquire);
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

// The current job in one word: its number, whether workers may still join, how many have joined and how many
// of them are still at work. A worker joins by compare-and-swap, so it can neither miss a job's end nor join
// the next by mistake.
struct Job {
  static constexpr uint64_t kOpen = uint64_t{1} << 31, kJoined = uint64_t{1} << 16, kActive = 1;
  static uint64_t opened(uint32_t number) { return uint64_t{number} << 32 | kOpen; }
  static bool joinable(uint64_t job, uint32_t number) { return job >> 32 == number && (job & kOpen) != 0; }
  static size_t joined(uint64_t job) { return job >> 16 & 0x7fff; }
  static size_t active(uint64_t job) { return job & 0xffff; }
};

struct ThreadPool::Impl {
  // Written by the caller for the workers and by the workers for the caller: one cache line each.
  alignas(kCacheLine) std::atomic<uint32_t> generation{0};
  Fn fn = nullptr;
  void* ctx = nullptr;
  const char* label = nullptr;    // what a timeline calls it
  std::atomic<bool> stop{false};  // atomic: a worker that missed the last job may look at any time
  alignas(kCacheLine) std::atomic<uint64_t> job{0};
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
  bool join_job(uint32_t number);
  void publish();
  template <class Done>
  void finish(Done done);
  void run(Fn f, void* c, size_t joiners);
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
      trace::name_thread("worker " + std::to_string(i));
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

// Release: a worker that sees the new job sees fn and ctx, and stop with its generation.
void ThreadPool::Impl::publish() {
  const uint32_t number = generation.load(std::memory_order_relaxed) + 1;
  job.store(Job::opened(number), std::memory_order_release);
  generation.store(number, std::memory_order_release);
  generation.notify_all();
}

bool ThreadPool::Impl::join_job(uint32_t number) {
  uint64_t now = job.load(std::memory_order_acquire);
  while (Job::joinable(now, number))
    if (job.compare_exchange_weak(now, now + Job::kJoined + Job::kActive, std::memory_order_acq_rel))
      return true;
  return false;
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
    if (!join_job(seen)) continue;
    {
      const trace::Span span(label);
      call(thread);
    }
    job.fetch_sub(Job::kActive, std::memory_order_acq_rel);
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

// The wait is short unless a worker lost its CPU; then yielding gives it ours.
template <class Done>
void ThreadPool::Impl::finish(Done done) {
  const auto reached = [&] { return done(job.load(std::memory_order_acquire)); };
  while (!reached())
    if (!spin || !spin_until(reached)) std::this_thread::yield();
}

// Runs f here and on the workers; the job stays open until `joiners` workers have come.
void ThreadPool::Impl::run(Fn f, void* c, size_t joiners) {
  if (workers.empty()) return f(c, 0);
  if (forks_at_start != current_forks())
    throw Error("threads do not survive fork(): load the model in the process that runs it");
  fn = f;
  ctx = c;
  label = trace::on() ? trace::current() : nullptr;
  publish();
  call(0);
  finish([&](uint64_t now) { return Job::joined(now) >= joiners; });
  job.fetch_and(~Job::kOpen, std::memory_order_acq_rel);
  finish([](uint64_t now) { return Job::active(now) == 0; });
  rethrow();
}

void ThreadPool::run(Fn fn, void* ctx) { impl_->run(fn, ctx, size() - 1); }
void ThreadPool::share(Fn fn, void* ctx) { impl_->run(fn, ctx, 0); }

}  // namespace hotset
