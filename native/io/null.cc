// Ends every read at once without touching its destination: what is left is the cost of everything but the
// drive.
#include <deque>

#include "io/backend.h"

namespace hotset::io {
namespace {

class NullReader final : public QueueReader {
 public:
  using QueueReader::QueueReader;
  const char* backend() const override { return "null"; }

 private:
  void start(std::span<const Read> reads) override { done_.insert(done_.end(), reads.begin(), reads.end()); }
  bool take(Done& done, size_t) override {
    done = {done_.front(), static_cast<ssize_t>(done_.front().dst.size())};
    done_.pop_front();
    return true;
  }

  std::deque<Read> done_;
};

}  // namespace

std::unique_ptr<Reader> make_null(File file, size_t depth) {
  return std::make_unique<NullReader>(std::move(file), depth);
}

}  // namespace hotset::io
