// A few threads that call pread(2): for kernels and sandboxes without io_uring.
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "io/backend.h"

namespace hotset::io {
namespace {

// A drive reaches most of its rate at queue depth 16; more blocked threads only add switches.
constexpr size_t kMaxThreads = 16;

class PreadReader final : public QueueReader {
 public:
  PreadReader(File file, size_t depth) : QueueReader(std::move(file), depth) {
    for (size_t i = 0; i < std::min(depth, kMaxThreads); ++i) threads_.emplace_back([this] { work(); });
  }

  ~PreadReader() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      waiting_.clear();  // not begun; those that were end before join() returns
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  const char* backend() const override { return "pread"; }

 private:
  void start(std::span<const Read> reads) override {
    {
      const std::lock_guard lock(mutex_);
      waiting_.insert(waiting_.end(), reads.begin(), reads.end());
    }
    reads.size() == 1 ? work_.notify_one() : work_.notify_all();
  }

  bool take(Done& done, size_t at_least) override {
    std::unique_lock lock(mutex_);
    if (done_.empty() && at_least == 0) return false;
    ended_.wait(lock, [&] { return !done_.empty(); });
    done = done_.front();
    done_.pop_front();
    return true;
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
      if (stop_) return;
      const Read read = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      const ssize_t got = read_fully(file().fd(), read.dst.data(), read.dst.size(), read.offset);
      lock.lock();
      done_.push_back({read, got});
      ended_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_, ended_;
  std::deque<Read> waiting_;
  std::deque<Done> done_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<Reader> make_pread(File file, size_t depth) {
  return std::make_unique<PreadReader>(std::move(file), depth);
}

}  // namespace hotset::io
