// LayerStream: every piece has its bytes in whatever order they are asked for, a further pass is read ahead
// from prepare() on without opening the file again, and no read outlives the memory that it writes into.
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "pipeline/layer_stream.h"

using namespace hotset;
using pipeline::LayerStream;
namespace fs = std::filesystem;

namespace {

constexpr size_t kLayers = 3, kUnits = 60, kStride = 4096, kChunk = 8, kRing = 8;

// Reads that pread(2) is at, which this program's own does slowly if told to.
struct Slow {
  std::mutex mutex;
  std::vector<std::pair<const uint8_t*, const uint8_t*>> into;
  std::atomic<bool> on = false;
  std::atomic<int> unmapped = 0;  // pieces of memory that went while a read into them ran

  bool any() {
    const std::lock_guard lock(mutex);
    return !into.empty();
  }
} slow;

}  // namespace

// In place of the C library's.
extern "C" ssize_t pread(int fd, void* to, size_t bytes, off_t offset) {
  const auto* begin = static_cast<const uint8_t*>(to);
  const std::pair range{begin, begin + bytes};
  if (slow.on) {
    {
      const std::lock_guard lock(slow.mutex);
      slow.into.push_back(range);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  const auto got = static_cast<ssize_t>(syscall(SYS_pread64, fd, to, bytes, offset));
  const std::lock_guard lock(slow.mutex);
  std::erase(slow.into, range);
  return got;
}

extern "C" int munmap(void* at, size_t bytes) noexcept {
  const auto *begin = static_cast<const uint8_t*>(at), *end = begin + bytes;
  {
    const std::lock_guard lock(slow.mutex);
    slow.unmapped += std::ranges::any_of(
        slow.into, [&](const auto& range) { return range.first < end && begin < range.second; });
  }
  return static_cast<int>(syscall(SYS_munmap, at, bytes));
}

namespace {

// Layers of units side by side in a file that goes with it.
struct File {
  fs::path folder;
  std::string path;
  std::vector<uint8_t> data;

  File() : data(kLayers * kUnits * kStride) {
    char name[] = "/var/tmp/hotset-stream-XXXXXX";
    folder = mkdtemp(name);
    path = (folder / "units").string();
    std::mt19937 rng(3);
    for (uint8_t& b : data) b = static_cast<uint8_t>(rng());
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
  }
  ~File() { fs::remove_all(folder); }

  pipeline::Units units() const {
    return {path, {0, kUnits * kStride, 2 * kUnits * kStride}, kUnits, kStride};
  }
  bool is(size_t layer, const LayerStream::Piece& piece) const {
    const uint8_t* want = data.data() + (layer * kUnits + piece.first) * kStride;
    return std::memcmp(piece.data, want, piece.count * kStride) == 0;
  }
};

// Asks for one piece; returns where the next one begins.
size_t piece(LayerStream& stream, const File& file, size_t layer, size_t first) {
  const LayerStream::Piece piece = stream.next(layer, first);
  CHECK(piece.first == first && piece.count == std::min(kChunk - first % kChunk, kUnits - first));
  CHECK(file.is(layer, piece));
  stream.pump();
  CHECK(file.is(layer, piece));
  return first + piece.count;
}

void pass(LayerStream& stream, const File& file, const std::vector<uint32_t>& first) {
  for (size_t layer = 0; layer < kLayers; ++layer) {
    stream.prepare(layer, first[layer]);
    for (size_t at = first[layer]; at < kUnits;) at = piece(stream, file, layer, at);
  }
}

void test_passes(const std::string& backend, const std::vector<uint32_t>& first) {
  const File file;
  LayerStream stream(file.units(), first, kChunk, kRing, {backend});
  pass(stream, file, first);
  const uint64_t reads = stream.reads(), bytes = stream.bytes_read();
  CHECK(bytes == (kLayers * kUnits - first[0] - first[1] - first[2]) * kStride);
  fs::remove(file.path);  // what is open stays readable; to open it again fails
  for (uint64_t n = 1; n < 4; ++n) {
    stream.prepare(0, first[0]);
    CHECK(stream.reads() > n * reads);  // under way before anything is asked for
    pass(stream, file, first);
    CHECK(stream.reads() == (n + 1) * reads && stream.bytes_read() == (n + 1) * bytes);
  }
  stream.abandon();
  CHECK_THROWS(IoError, stream.next(0, first[0]));
}

// A pass that ended early leaves other pieces in the ring than the next one wants.
void test_any_order(const std::string& backend) {
  const File file;
  const std::vector<uint32_t> first{11, 0, 3};
  LayerStream stream(file.units(), first, kChunk, kRing, {backend});
  std::mt19937 rng(7);
  for (int round = 0; round < 100; ++round) {
    const size_t layer = rng() % kLayers;
    size_t at = rng() % kUnits;
    if (rng() % 2) stream.prepare(layer, at);
    for (size_t pieces = rng() % 12; pieces > 0 && at < kUnits; --pieces) at = piece(stream, file, layer, at);
    if (rng() % 10 == 0) stream.abandon();
  }
  pass(stream, file, first);
}

void test_around(const std::string& backend) {
  const File file;
  LayerStream stream(file.units(), {0, 0, 0}, kChunk, kRing, {backend}, true);
  for (int token = 0; token < 3; ++token)
    for (size_t layer = 0; layer < kLayers; ++layer)
      for (size_t at = 0; at < kUnits;) at = piece(stream, file, layer, at);
}

// Reads that fail, of a pass that ended early: what comes after them does not want their bytes.
void test_errors_of_what_nobody_wants(const std::string& backend) {
  const File file;
  LayerStream stream(file.units(), {0, 0, 0}, kChunk, kRing, {backend});
  piece(stream, file, 0, 0);
  fs::resize_file(file.path, 2 * kUnits * kStride);
  stream.prepare(2, 0);
  piece(stream, file, 0, kChunk);
}

void test_nothing_to_read() {
  LayerStream stream({"/nowhere", {0, 0, 0}, kUnits, kStride}, {kUnits, kUnits, kUnits}, kChunk, kRing,
                     {"pread", 4, false});
  for (size_t layer = 0; layer < kLayers; ++layer) stream.prepare(layer, kUnits);
  CHECK(stream.reads() == 0 && stream.bytes() == 0);
}

void test_reads_end_before_their_memory_goes() {
  const File file;
  for (const bool started_over : {false, true}) {
    LayerStream stream(file.units(), {0, 0, 0}, kChunk, kRing, {"pread"});
    piece(stream, file, 0, 0);
    slow.on = true;
    piece(stream, file, started_over ? 2 : 0, kChunk);
    while (!slow.any()) std::this_thread::yield();  // others are under way
  }
  slow.on = false;
  CHECK(slow.unmapped == 0);
}

}  // namespace

int main() {
  for (const char* backend : {"auto", "pread", "memory"}) {
    test_passes(backend, {0, 0, 0});
    test_passes(backend, {12, 0, 57});
    test_passes(backend, {kUnits, 5, kUnits});  // layers that are in memory are passed over
    test_any_order(backend);
    test_around(backend);
    test_errors_of_what_nobody_wants(backend);
  }
  test_nothing_to_read();
  test_reads_end_before_their_memory_goes();
  return check::report();
}
