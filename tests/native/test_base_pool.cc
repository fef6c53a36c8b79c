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
    pool.run(
        [](void* p, size_t thread) {
          auto& c = *static_cast<Ctx*>(p);
          uint64_t sum = 0;
          for (uint64_t v : c.now) sum += v;
          c.next[thread] = sum % 1000003;
        },
        &ctx);
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

void test_share_does_not_wait_for_absent_workers() {
  ThreadPool pool(2);
  std::atomic<int> calls = 0;
  for (int i = 0; i < 1000; ++i)
    pool.share([](void* p, size_t) { ++*static_cast<std::atomic<int>*>(p); }, &calls);
  CHECK(calls >= 1000 && calls <= 2000);
}

void test_exceptions() {
  ThreadPool pool(4);
  for (int repeat = 0; repeat < 100; ++repeat) {
    std::string what;
    try {
      pool.run(
          [](void*, size_t thread) {
            if (thread % 2 == 1) throw std::runtime_error("thread " + std::to_string(thread));
          },
          nullptr);
    } catch (const std::runtime_error& e) {
      what = e.what();
    }
    CHECK(what == "thread 1");
    std::atomic<int> ran = 0;
    pool.run([](void* p, size_t) { ++*static_cast<std::atomic<int>*>(p); }, &ran);
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
  pool.run([](void*, size_t) {}, nullptr);
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
  pool.run(
      [](void* p, size_t thread) {
        cpu_set_t& set = (*static_cast<std::vector<cpu_set_t>*>(p))[thread];
        sched_getaffinity(0, sizeof(set), &set);
      },
      &masks);
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
    if (i % 3 != 0) pool.run([](void*, size_t) {}, nullptr);
  }
  // join() returns a moment before the kernel drops the entry
  for (int i = 0; i < 100 && threads_alive() > before; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(threads_alive() == before);
}

void test_fork() {
  auto pool = std::make_unique<ThreadPool>(2);
  pool->run([](void*, size_t) {}, nullptr);
  const pid_t child = fork();
  if (child == 0) {
    int code = 1;
    try {
      pool->run([](void*, size_t) {}, nullptr);
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
  pool->run([](void* p, size_t) { ++*static_cast<std::atomic<int>*>(p); }, &ran);
  CHECK(ran == 2);
}

}  // namespace

int main() {
  for (size_t threads : {1, 2, 3, 8}) test_every_index_once(threads);
  test_phases_are_barriers(2, 50000);
  test_phases_are_barriers(5, 3000);  // more threads than this machine may have CPUs
  test_short_phases(2, 20000);
  test_short_phases(6, 3000);
  test_share_does_not_wait_for_absent_workers();
  test_exceptions();
  test_idle_pool_sleeps();
  test_pinning();
  test_no_thread_is_left();
  test_fork();
  return check::report();
}
