// Spans, rings and their reader: what is written comes out once, whole and in order, also while it is being
// written.
#include <atomic>
#include <barrier>
#include <string>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "base/trace.h"
#include "check.h"

using namespace hotset;

namespace {

void test_off() {
  {
    const trace::Span span("unseen");
  }
  trace::count("unseen", 1);
  CHECK(trace::current() == nullptr && trace::take().empty());
}

void test_nesting() {
  trace::enabled = true;
  {
    const trace::Span outer("outer", 7);
    {
      const trace::Span inner("inner"), nothing(nullptr);
      CHECK(trace::current() == std::string("inner"));
    }
    CHECK(trace::current() == std::string("outer"));
    trace::enabled = false;  // what is open is still closed
  }
  CHECK(trace::current() == nullptr);
  const auto taken = trace::take();
  CHECK(taken.size() == 1 && taken[0].lost == 0 && taken[0].events.size() == 2);
  const trace::Event inner = taken[0].events[0], outer = taken[0].events[1];
  CHECK(inner.name == std::string("inner") && inner.value == trace::kNoValue);
  CHECK(outer.name == std::string("outer") && outer.value == 7);
  CHECK(outer.begin <= inner.begin && inner.begin <= inner.end && inner.end <= outer.end);
  CHECK(trace::take().empty());
}

void test_workers() {
  ThreadPool pool(3);
  trace::enabled = true;
  {
    const trace::Span span("job");
    std::barrier all(3);  // so every thread takes one chunk
    pool.parallel_for(3, 1, [&](size_t, size_t, size_t) { all.arrive_and_wait(); });
  }
  std::barrier all(3);
  pool.parallel_for(3, 1, [&](size_t, size_t, size_t) { all.arrive_and_wait(); });  // part of nothing
  trace::enabled = false;
  size_t workers = 0;
  for (const auto& t : trace::take()) {
    if (t.thread_name.starts_with("worker ")) ++workers;
    CHECK(t.events.size() == 1 && t.events[0].name == std::string("job"));
  }
  CHECK(workers == 2);
}

// Numbers in rising order from a writer that laps its ring; none may come twice, torn or out of order.
void test_taking_while_it_is_written() {
  constexpr uint64_t kEvents = 3'000'000;
  std::atomic<bool> done = false;
  trace::enabled = true;
  std::thread writer([&] {
    for (uint64_t i = 1; i <= kEvents; ++i)
      trace::record({"n", i, i, trace::Kind::counter, static_cast<uint32_t>(i)});
    done = true;
  });
  uint64_t last = 0, seen = 0, lost = 0;
  for (bool more = true; more;) {
    more = !done;
    for (const auto& t : trace::take()) {
      lost += t.lost;
      for (const trace::Event& e : t.events) {
        CHECK(e.begin > last && e.end == e.begin && e.value == e.begin);
        last = e.begin;
        ++seen;
      }
    }
  }
  writer.join();
  trace::enabled = false;
  CHECK(last == kEvents && seen + lost == kEvents);
  CHECK(trace::fullest() == 0);
}

}  // namespace

int main() {
  test_off();
  test_nesting();
  test_workers();
  test_taking_while_it_is_written();
  return check::report();
}
