// The thread pool under stress: every index once, every phase seen, exceptions, sleep, fork, no leak.
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include "base/cpu.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "check.h"

using namespace hotset;

namespace {

// Calls fn(thread) once on every thread: nobody leaves before all have come.
template <class Fn>
void on_every_thread(ThreadPool& pool, Fn fn) {
  std::atomic<size_t> here = 0;
  pool.parallel_parts(pool.size(), [&](size_t, size_t thread) {
    for (++here; here < pool.size();) std::this_thread::yield();
    fn(thread);
  });
}

void test_every_index_once(size_t threads) {
  ThreadPool pool(threads);
  CHECK(pool.size() == threads);
  for (size_t n : {0, 1, 2, 7, 64, 1000})
    for (size_t grain : {1, 3, 64, 5000}) {
      std::vector<std::atomic<int>> hits(n);
      pool.parallel_for(n, grain, [&](size_t begin, size_t end, size_t thread) {
        CHECK(thread < threads && begin < end && end <= n);
        for (size_t i = begin; i < end; ++i) hits[i].fetch_add(1);
      });
      CHECK(std::all_of(hits.begin(), hits.end(), [](const auto& h) { return h == 1; }));
    }
}

// Plain, unsynchronized data: what a thread wrote in one phase the others read in the next.
void test_phases_are_barriers(size_t threads, int phases) {
  struct Ctx {
    std::vector<uint64_t> now, next;
  } ctx{std::vector<uint64_t>(threads, 1), std::vector<uint64_t>(threads)};
  ThreadPool pool(threads);
  uint64_t want = 1;
  for (int phase = 0; phase < phases; ++phase) {
    pool.parallel_parts(threads, [&](size_t part, size_t) {
      uint64_t sum = 0;
      for (uint64_t v : ctx.now) sum += v;
      ctx.next[part] = sum % 1000003;
    });
    std::swap(ctx.now, ctx.next);
    want = want * threads % 1000003;
    if (phase % 1000 == 999)
      std::this_thread::sleep_for(std::chrono::microseconds(200));  // let them fall asleep
  }
  CHECK(std::all_of(ctx.now.begin(), ctx.now.end(), [&](uint64_t v) { return v == want; }));
}

// Phases shorter than it takes a worker to come: a late one must neither join a finished phase, whose data is
// gone, nor work twice in the next.
void test_short_phases(size_t threads, int phases) {
  ThreadPool pool(threads);
  for (int phase = 0; phase < phases; ++phase) {
    std::vector<int> hits(3);
    pool.parallel_for(3, 1, [&](size_t begin, size_t, size_t) { hits[begin] += phase; });
    CHECK(hits == std::vector<int>(3, phase));
    if (phase % 500 == 499) std::this_thread::sleep_for(std::chrono::microseconds(150));
  }
}

// A worker that does not come (here, because the caller has done all before it can) is not waited for;
// whoever comes gets every chunk exactly once.
void test_chunks_of_absent_workers_are_taken() {
  ThreadPool pool(2);
  for (int i = 0; i < 300; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(i % 3 == 0 ? 120 : 0));
    std::vector<std::atomic<int>> calls(6);
    pool.parallel_parts(6, [&](size_t part, size_t) { ++calls[part]; });
    CHECK(std::all_of(calls.begin(), calls.end(), [](const auto& n) { return n == 1; }));
  }
}

void test_exceptions() {
  ThreadPool pool(4);
  for (int repeat = 0; repeat < 100; ++repeat) {
    std::string what;
    try {
      on_every_thread(pool, [](size_t thread) {
        if (thread % 2 == 1) throw std::runtime_error("thread " + std::to_string(thread));
      });
    } catch (const std::runtime_error& e) {
      what = e.what();
    }
    CHECK(what == "thread 1");
    std::atomic<int> ran = 0;
    on_every_thread(pool, [&](size_t) { ++ran; });
    CHECK(ran == 4);  // usable, and the old error is gone
  }
  CHECK_THROWS(InvalidArgument, ThreadPool(0));
  CHECK_THROWS(InvalidArgument, ThreadPool(100000));
}

double cpu_seconds() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  return static_cast<double>(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

void test_idle_pool_sleeps() {
  ThreadPool pool(4);
  pool.parallel_parts(4, [](size_t, size_t) {});
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(cpu_seconds() - before < 0.1);  // spinning workers would use 0.9 s
}

void test_pinning() {
  const std::vector<int> cpus = allowed_cpus();
  cpu_set_t before, after;
  sched_getaffinity(0, sizeof(before), &before);
  ThreadPool pool(cpus.size());
  std::vector<cpu_set_t> masks(cpus.size());
  on_every_thread(pool, [&](size_t thread) { sched_getaffinity(0, sizeof(cpu_set_t), &masks[thread]); });
  sched_getaffinity(0, sizeof(after), &after);
  CHECK(CPU_EQUAL(&before, &after));
  std::set<int> used;
  for (size_t i = 1; i < masks.size() && cgroup_cpu_quota() == 0; ++i) {
    CHECK(CPU_COUNT(&masks[i]) == 1);
    for (int cpu : cpus)
      if (CPU_ISSET(cpu, &masks[i])) used.insert(cpu);
    CHECK(used.size() == i);  // each worker its own
  }
}

size_t threads_alive() {
  const auto tasks = std::filesystem::directory_iterator("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

void test_no_thread_is_left() {
  const size_t before = threads_alive();
  for (int i = 0; i < 300; ++i) {
    ThreadPool pool(3, i % 2 == 0);
    if (i % 3 != 0) pool.parallel_parts(3, [](size_t, size_t) {});
  }
  // join() returns a moment before the kernel drops the entry
  for (int i = 0; i < 100 && threads_alive() > before; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(threads_alive() == before);
}

void test_fork() {
  auto pool = std::make_unique<ThreadPool>(2);
  pool->parallel_parts(2, [](size_t, size_t) {});
  const pid_t child = fork();
  if (child == 0) {
    int code = 1;
    try {
      pool->parallel_parts(2, [](size_t, size_t) {});
    } catch (const Error&) {
      code = 0;
    }
    pool.reset();  // must neither hang nor end the process
    _exit(code);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  std::atomic<int> ran = 0;
  on_every_thread(*pool, [&](size_t) { ++ran; });
  CHECK(ran == 2);
}

}  // namespace

int main() {
  for (size_t threads : {1, 2, 3, 8}) test_every_index_once(threads);
  test_phases_are_barriers(2, 50000);
  test_phases_are_barriers(5, 3000);  // more threads than this machine may have CPUs
  test_short_phases(2, 20000);
  test_short_phases(6, 3000);
  test_chunks_of_absent_workers_are_taken();
  test_exceptions();
  test_idle_pool_sleeps();
  test_pinning();
  test_no_thread_is_left();
  test_fork();
  return check::report();
}
