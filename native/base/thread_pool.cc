#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <optional>
#include <string>
#include <thread>
#include <vector>

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

// The chunks [next, end) of a job that nobody has begun, and the job's number, in one word: a chunk is taken
// by compare-and-swap, so nobody can take one twice or one of a job that is over.
struct Span {
  uint64_t word;
  static constexpr uint64_t kBits = 24, kMask = (uint64_t{1} << kBits) - 1;
  static Span of(uint64_t job, size_t next, size_t end) {
    return {job << (2 * kBits) | uint64_t{end} << kBits | next};
  }
  size_t next() const { return word & kMask; }
  bool empty() const { return next() == (word >> kBits & kMask); }
};

// What one thread owns. A line travels between cores in some 0.2 us, as long as a whole norm takes, so all
// that a phase needs is in one. Two lines long, because CPUs fetch neighbours in pairs.
struct alignas(2 * kCacheLine) ThreadPool::Slot {
  std::atomic<uint64_t> span{0};  // set by the caller, which has written fn, ctx and label before
  Fn fn = nullptr;
  void* ctx = nullptr;
  const char* label = nullptr;    // what a timeline calls the job
  std::atomic<uint64_t> done{0};  // chunks that this thread has ended, of all jobs
  std::atomic<uint32_t> asleep{0};
  std::exception_ptr error;

  void offer(Fn f, void* c, Span s) {
    fn = f;
    ctx = c;
    label = trace::on() ? trace::current() : nullptr;
    span.store(s.word, std::memory_order_release);
  }
  void call(const Slot& from, size_t chunk, size_t thread);
  void wake() {
    if (asleep.exchange(0)) asleep.notify_one();
  }
};

struct ThreadPool::Impl {
  std::vector<Slot> slots;           // [threads]
  std::vector<std::thread> workers;  // [threads - 1]
  uint64_t job = 0, offered = 0;     // number of the last job; chunks of all jobs
  uint32_t forks_at_start = current_forks();
  bool spin = true;
  alignas(2 * kCacheLine) std::atomic<uint32_t> sleepers{0};  // read in every job, written rarely
  std::atomic<bool> stop{false};

  explicit Impl(size_t threads, bool pin);
  ~Impl() { join(); }
  void start(size_t threads, bool pin, const std::vector<int>& cpus);
  void join();
  void work(size_t thread);
  void await_job(Slot& mine, uint64_t seen);
  uint64_t take(Slot& from, size_t thread);
  uint64_t take_all(size_t thread);
  void run(Fn f, void* c, size_t chunks);
  void finish();
  void rethrow();
};

ThreadPool::Impl::Impl(size_t threads, bool pin) : slots(threads) {
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
  stop = true;
  ++job;
  for (Slot& slot : slots) {
    slot.offer(nullptr, nullptr, Span::of(job, 0, 0));
    slot.wake();
  }
  for (std::thread& worker : workers) worker.join();
  workers.clear();
}

// Waits for a job other than the one `seen`.
void ThreadPool::Impl::await_job(Slot& mine, uint64_t seen) {
  const auto changed = [&] { return mine.span.load(std::memory_order_acquire) != seen; };
  while (!spin || !spin_until(changed)) {
    sleepers.fetch_add(1);
    mine.asleep = 1;
    if (!changed()) mine.asleep.wait(1);
    mine.asleep = 0;
    sleepers.fetch_sub(1);
    if (changed()) break;
  }
}

void ThreadPool::Slot::call(const Slot& from, size_t chunk, size_t thread) {
  try {
    from.fn(from.ctx, chunk, thread);
  } catch (...) {
    if (!error) error = std::current_exception();
  }
  done.store(done.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

// Takes what is left of one thread's span; returns the word that showed it empty.
uint64_t ThreadPool::Impl::take(Slot& from, size_t thread) {
  std::optional<trace::Span> traced;  // the caller has its own
  Span now{from.span.load(std::memory_order_acquire)};
  while (!now.empty()) {
    if (!from.span.compare_exchange_weak(now.word, now.word + 1, std::memory_order_acq_rel)) continue;
    if (thread > 0 && !traced) traced.emplace(from.label);
    slots[thread].call(from, now.next(), thread);
    now.word = from.span.load(std::memory_order_acquire);
  }
  return now.word;
}

uint64_t ThreadPool::Impl::take_all(size_t thread) {
  const uint64_t last = take(slots[thread], thread);
  for (size_t i = 1; i < slots.size(); ++i) take(slots[(thread + i) % slots.size()], thread);
  return last;
}

void ThreadPool::Impl::work(size_t thread) {
  // stop is looked at after the last word, which take_all() may be the first to see.
  for (uint64_t seen = 0; !stop; seen = take_all(thread)) await_job(slots[thread], seen);
}

// The wait is short unless a worker lost its CPU amid a chunk; then yielding gives it ours.
void ThreadPool::Impl::finish() {
  const auto over = [&] {
    uint64_t done = 0;
    for (const Slot& slot : slots) done += slot.done.load(std::memory_order_acquire);
    return done == offered;
  };
  while (!over())
    if (!spin || !spin_until(over)) std::this_thread::yield();
}

void ThreadPool::Impl::rethrow() {
  std::exception_ptr first;
  for (Slot& slot : slots) {
    if (slot.error && !first) first = slot.error;
    slot.error = nullptr;
  }
  if (first) std::rethrow_exception(first);
}

void ThreadPool::Impl::run(Fn f, void* c, size_t chunks) {
  if (forks_at_start != current_forks())
    throw Error("threads do not survive fork(): load the model in the process that runs it");
  offered += chunks;
  ++job;
  const size_t n = slots.size();
  const auto begin = [&](size_t thread) { return (chunks * thread + n - 1) / n; };
  for (size_t i = n; i-- > 0;) slots[i].offer(f, c, Span::of(job, begin(i), begin(i + 1)));
  // No fence: a worker that falls asleep just now and is not seen here only leaves its work to others.
  if (sleepers.load(std::memory_order_relaxed) > 0)
    for (size_t i = 1; i < n; ++i)
      if (begin(i) < begin(i + 1)) slots[i].wake();
  take_all(0);
  finish();
  rethrow();
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

size_t ThreadPool::size() const { return impl_->slots.size(); }

void ThreadPool::run(Fn fn, void* ctx, size_t chunks) {
  if (size() > 1) return impl_->run(fn, ctx, chunks);
  for (size_t i = 0; i < chunks; ++i) fn(ctx, i, 0);
}

}  // namespace hotset
