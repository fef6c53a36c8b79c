// What all back ends share: near reads go as one, second tries, polling, registered memory; and drives
// that misbehave.
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "check.h"
#include "io/reader.h"

using namespace hotset;
using io::Read;
namespace fs = std::filesystem;

namespace {

constexpr size_t kBlock = 4096, kBlocks = 700, kDepth = 60;
constexpr size_t kBytes = kBlocks * kBlock - 1000;  // ends inside a block

std::vector<uint8_t> content() {
  std::vector<uint8_t> data(kBytes);
  std::mt19937 rng(11);
  for (uint8_t& b : data) b = static_cast<uint8_t>(rng());
  return data;
}

std::string write_file(const fs::path& dir, const std::vector<uint8_t>& data) {
  const std::string path = (dir / "data").string();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
  return path;
}

std::vector<std::string> backends() {
  std::vector<std::string> names{"pread", "memory", "fault:short:1:0.5", "fault:flaky:2:0.5",
                                 "fault:slow:3:0.02"};
  if (io::io_uring_works()) names.push_back("io_uring");
  return names;
}

// Blocks of a file, each into a place of its own; tags are the numbers of the reads.
struct Batch {
  std::vector<size_t> blocks;
  std::vector<size_t> places;  // shuffled, so that nothing adjoins in memory
  Buffer memory{kDepth * kBlock};
  std::vector<Read> reads;

  Batch(std::vector<size_t> wanted, std::mt19937& rng) : blocks(std::move(wanted)), places(blocks.size()) {
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), rng);
    std::memset(memory.data(), 0xee, memory.size());
    for (size_t i = 0; i < blocks.size(); ++i)
      reads.push_back({blocks[i] * kBlock, {memory.data() + places[i] * kBlock, kBlock}, i});
  }
  bool arrived(size_t i, const std::vector<uint8_t>& want) const {
    const size_t offset = blocks[i] * kBlock, n = std::min(kBlock, want.size() - offset);
    return std::memcmp(memory.data() + places[i] * kBlock, &want[offset], n) == 0;
  }
};

// Rising blocks with runs of neighbours in between.
std::vector<size_t> some_blocks(size_t n, std::mt19937& rng) {
  std::vector<size_t> out;
  for (size_t block = rng() % 20; out.size() < n && block < kBlocks; block += rng() % 3 ? 1 : 1 + rng() % 9)
    out.push_back(block);
  return out;
}

// How many requests the rule makes of them, counted anew; merged, gap: most blocks of one, and between two
// reads.
size_t requests(const std::vector<size_t>& blocks, size_t merged, size_t gap) {
  size_t n = 0, first = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const bool near = i > 0 && blocks[i] <= blocks[i - 1] + 1 + gap;
    if (near && blocks[i] - first + 1 <= merged) continue;
    first = blocks[i];
    ++n;
  }
  return n;
}

void test_merging(const std::string& path, const std::vector<uint8_t>& want, const std::string& backend) {
  std::mt19937 rng(5);
  for (const bool direct : {true, false})
    for (const auto& [merged, gap] :
         std::vector<std::pair<size_t, size_t>>{{0, 0}, {2, 0}, {16, 0}, {16, 2}, {1000, 5}}) {
      const auto reader = io::open_reader(path, {backend, kDepth, direct, merged * kBlock, gap * kBlock});
      for (int round = 0; round < 20; ++round) {
        const Batch batch(some_blocks(1 + rng() % kDepth, rng), rng);
        const uint64_t before = reader->requests();
        CHECK(reader->submit(batch.reads) == batch.reads.size());
        CHECK(reader->requests() - before == requests(batch.blocks, merged, gap));
        std::vector<bool> seen(batch.reads.size());
        std::vector<uint64_t> tags(1 + rng() % 7);
        for (size_t done = 0; done < seen.size();) {
          const size_t n = reader->wait(tags, std::min(seen.size() - done, rng() % (tags.size() + 1)));
          for (size_t i = 0; i < n; ++i) {
            CHECK(!seen[tags[i]] && batch.arrived(tags[i], want));
            seen[tags[i]] = true;
          }
          done += n;
        }
      }
    }
}

// More reads than requests may be in flight: they are taken as room comes, and all arrive.
void test_room(const std::string& path, const std::vector<uint8_t>& want, const std::string& backend) {
  std::mt19937 rng(10);
  const auto reader = io::open_reader(path, {backend, 3, true, 4 * kBlock});
  const Batch batch(some_blocks(kDepth, rng), rng);
  std::vector<uint64_t> tags(kDepth);
  size_t sent = 0, done = 0;
  while (done < batch.reads.size()) {
    const size_t taken = reader->submit(std::span(batch.reads).subspan(sent));
    CHECK(taken <= 3 * 4);
    sent += taken;
    const size_t n = reader->wait(tags, 1);
    for (size_t i = 0; i < n; ++i) CHECK(batch.arrived(tags[i], want));
    done += n;
  }
  CHECK(sent == batch.reads.size());
}

void test_registered(const std::string& path, const std::vector<uint8_t>& want) {
  std::mt19937 rng(6);
  const Batch batch(some_blocks(kDepth, rng), rng);
  const size_t half = kDepth / 2 * kBlock;
  const auto reader = io::open_reader(path, {"auto", kDepth, true, 2 * kBlock});
  const auto all_arrive = [&] {
    std::memset(batch.memory.data(), 0, batch.memory.size());
    reader->submit(batch.reads);
    std::vector<uint64_t> tags(batch.reads.size());
    CHECK(reader->wait(tags, tags.size()) == tags.size());
    for (size_t i = 0; i < tags.size(); ++i) CHECK(batch.arrived(i, want));
  };
  reader->unregister_memory();                           // of none
  reader->register_memory({batch.memory.data(), half});  // some reads lie within, some outside
  all_arrive();
  reader->unregister_memory();
  all_arrive();
  reader->register_memory({batch.memory.data() + half, batch.memory.size() - half});
  all_arrive();
}

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const IoError& e) {
    return e.what();
  }
  return "";
}

// All that is read before the error is right; the error names a read of the batch.
void test_faults_that_stay(const std::string& path, const std::vector<uint8_t>& want,
                           const std::string& kind) {
  std::mt19937 rng(7);
  for (unsigned seed = 0; seed < 20; ++seed) {
    const auto reader = io::open_reader(
        path, {"fault:" + kind + ":" + std::to_string(seed) + ":0.4", kDepth, true, 4 * kBlock, 0});
    const Batch batch(some_blocks(kDepth, rng), rng);
    reader->submit(batch.reads);
    const std::string error = error_of([&] {
      uint64_t tag;
      for (size_t i = 0; i < batch.reads.size(); ++i) {
        reader->wait({&tag, 1}, 1);
        CHECK(batch.arrived(tag, want));
      }
    });
    CHECK(error.find(path + ": read of ") == 0);
    CHECK(error.find(kind == "cut" ? "got " : "Input/output error") != std::string::npos);
  }
}

void test_corruption_is_silent(const std::string& path, const std::vector<uint8_t>& want) {
  std::mt19937 rng(8);
  const auto reader = io::open_reader(path, {"fault:corrupt:1:1", kDepth, true, 0});
  const Batch batch(some_blocks(kDepth, rng), rng);
  reader->submit(batch.reads);
  std::vector<uint64_t> tags(batch.reads.size());
  CHECK(reader->wait(tags, tags.size()) == tags.size());
  size_t wrong = 0;
  for (size_t i = 0; i < tags.size(); ++i) wrong += !batch.arrived(i, want);
  CHECK(wrong >= tags.size() - 1);  // all but what lies behind the end of the file
}

void test_fault_names(const std::string& path) {
  for (const char* name : {"fault:", "fault:short", "fault:short:1", "fault:short:1:2", "fault:short:1:-1",
                           "fault:short:1:0.5x", "fault:melt:1:0.5", "fault:short:x:0.5"})
    CHECK_THROWS(InvalidArgument, io::open_reader(path, {name, 4, true}));
}

// One part of a merged transfer lies behind the new end: the parts before it arrive, the error names that
// part.
void test_truncated_inside_a_transfer(const fs::path& dir, const std::string& backend) {
  const std::string path = (dir / "shrinks").string();
  std::ofstream(path) << std::string(8 * kBlock, 'x');
  const auto reader = io::open_reader(path, {backend, 8, true});
  CHECK(truncate(path.c_str(), 5 * kBlock) == 0);
  std::mt19937 rng(9);
  const Batch batch({0, 1, 2, 3, 4, 5, 6, 7}, rng);
  CHECK(reader->submit(batch.reads) == 8 && reader->requests() == 1);
  uint64_t tags[8];
  const std::string error = error_of([&] { reader->wait(tags, 8); });
  CHECK(error.find(path + ": read of 4096 bytes at offset 20480 got 0") == 0);
}

void test_folder(const fs::path& dir) {
  const std::vector<uint8_t> data = content();
  const std::string path = write_file(dir, data);
  for (const std::string& backend : backends()) {
    test_merging(path, data, backend);
    test_room(path, data, backend);
  }
  test_registered(path, data);
  for (const char* kind : {"error", "cut"}) test_faults_that_stay(path, data, kind);
  test_corruption_is_silent(path, data);
  test_fault_names(path);
  for (const char* backend : {"auto", "pread"}) test_truncated_inside_a_transfer(dir, backend);
}

}  // namespace

int main() {
  char disk[] = "/var/tmp/hotset-io-XXXXXX", tmpfs[] = "/dev/shm/hotset-io-XXXXXX";
  for (char* name : {disk, tmpfs}) {
    if (!mkdtemp(name)) continue;  // not every sandbox has both
    test_folder(name);
    fs::remove_all(name);
  }
  return check::report();
}
