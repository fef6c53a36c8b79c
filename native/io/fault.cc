// A drive that misbehaves on a schedule: what it does may end a run with an error, never with wrong text.
// Tests only.
//
// Backend "fault:KIND:SEED:RATE": each transfer is hit with probability RATE, drawn from SEED and the number
// of readers opened before.
//   short    stops early, and what follows in memory is garbage; a second try succeeds
//   cut      stops early whenever it is tried: the file looks truncated
//   error    fails with EIO, and so does the second try
//   flaky    fails with EIO once
//   corrupt  one bit is wrong and nobody says so
//   slow     takes up to 5 ms longer
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <random>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "io/backend.h"

namespace hotset::io {
namespace {

struct Schedule {
  std::string kind;
  uint64_t seed = 0;
  double rate = 0;
};

Schedule parse(const std::string& backend) {
  std::istringstream in(backend);
  Schedule s;
  char colon = 0;
  std::getline(in, s.kind, ':');  // "fault"
  std::getline(in, s.kind, ':');
  in >> s.seed >> colon >> s.rate;
  const bool known = s.kind == "short" || s.kind == "cut" || s.kind == "error" || s.kind == "flaky" ||
                     s.kind == "corrupt" || s.kind == "slow";
  if (!in || !in.eof() || colon != ':' || !known || !(s.rate >= 0 && s.rate <= 1))
    throw InvalidArgument("'" + backend + "' is no back end; wanted fault:KIND:SEED:RATE");
  return s;
}

// A reader opened after an error must not fail at the same read for ever, so each has a schedule of its own.
std::atomic<uint64_t> readers{0};

// Reads when a completion is asked for, in a random order, in the caller's thread.
class FaultReader final : public QueueReader {
 public:
  FaultReader(File file, const ReaderOptions& options)
      : QueueReader(std::move(file), options),
        schedule_(parse(options.backend)),
        rng_(schedule_.seed + readers.fetch_add(1)) {}
  const char* backend() const override { return "fault"; }

 private:
  bool is(const char* kind) const { return schedule_.kind == kind; }
  size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(rng_); }

  void start(std::span<const Transfer> transfers) override {
    waiting_.insert(waiting_.end(), transfers.begin(), transfers.end());
  }

  bool take(Done& done, size_t) override {
    std::swap(waiting_.front(), waiting_[below(waiting_.size())]);
    const Transfer t = waiting_.front();
    waiting_.pop_front();
    const auto to = target(t);
    const ssize_t got = read_fully(file().fd(), to.data(), to.size(), offset_of(t));
    hit_ = std::bernoulli_distribution(schedule_.rate)(rng_);
    done = {t, hit_ && got > 0 ? harm(to, static_cast<size_t>(got)) : got};
    return true;
  }

  // Comes directly after the take() of its transfer.
  ssize_t read_again(const Read& read) override {
    if (hit_ && is("error")) return -EIO;
    const ssize_t got = QueueReader::read_again(read);
    return hit_ && is("cut") ? got / 2 : got;
  }

  ssize_t harm(std::span<uint8_t> data, size_t got) {
    if (is("error") || is("flaky")) {
      scribble(data);
      return -EIO;
    }
    if (is("short") || is("cut")) {
      const size_t kept = below(got);
      scribble(data.subspan(kept));
      return static_cast<ssize_t>(kept);
    }
    if (is("corrupt")) {
      data[below(data.size())] ^= static_cast<uint8_t>(1u << below(8));
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(below(5000)));
    }
    return static_cast<ssize_t>(got);
  }

  static void scribble(std::span<uint8_t> data) { std::memset(data.data(), 0xa5, data.size()); }

  Schedule schedule_;
  std::mt19937_64 rng_;
  std::deque<Transfer> waiting_;
  bool hit_ = false;
};

}  // namespace

std::unique_ptr<Reader> make_fault(File file, const ReaderOptions& options) {
  return std::make_unique<FaultReader>(std::move(file), options);
}

}  // namespace hotset::io
