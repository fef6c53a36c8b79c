// The whole file in memory, copied when a read is submitted: tests of what lies above need no drive.
#include <algorithm>
#include <cstring>
#include <deque>

#include "base/memory.h"
#include "io/backend.h"

namespace hotset::io {
namespace {

class MemoryReader final : public QueueReader {
 public:
  MemoryReader(File opened, const ReaderOptions& options)
      : QueueReader(std::move(opened), options), content_(file_bytes()) {
    const ssize_t got = read_fully(file().fd(), content_.data(), content_.size(), 0);
    if (got != static_cast<ssize_t>(content_.size()))
      throw_read_error(file().path(), 0, got, content_.size());
  }
  const char* backend() const override { return "memory"; }

 private:
  void start(std::span<const Transfer> transfers) override {
    for (Transfer t : transfers) ended_.push_back({t, copy(t)});
  }
  ssize_t copy(Transfer t) {
    const auto to = target(t);
    const size_t n = std::min<size_t>(to.size(), content_.size() - offset_of(t));
    std::memcpy(to.data(), content_.data() + offset_of(t), n);
    return static_cast<ssize_t>(n);
  }
  bool take(Done& done, size_t) override {
    done = ended_.front();
    ended_.pop_front();
    return true;
  }

  Buffer content_;
  std::deque<Done> ended_;
};

}  // namespace

std::unique_ptr<Reader> make_memory(File file, const ReaderOptions& options) {
  return std::make_unique<MemoryReader>(std::move(file), options);
}

}  // namespace hotset::io
