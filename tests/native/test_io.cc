// Every back end against a known file, on a disk and on tmpfs, and every way a read can be wrong.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "check.h"
#include "io/drive_rate.h"
#include "io/reader.h"

using namespace hotset;
using io::Read;
namespace fs = std::filesystem;

namespace {

constexpr size_t kBytes = (size_t{3} << 20) + 1234;  // ends inside a block

std::vector<uint8_t> content() {
  std::vector<uint8_t> data(kBytes);
  std::mt19937 rng(7);
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
  std::vector<std::string> names{"auto", "pread", "memory"};
  if (io::io_uring_works()) names.push_back("io_uring");
  return names;
}

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const IoError& e) {
    return e.what();
  }
  return "";
}

bool says(const std::string& message, std::initializer_list<std::string> parts) {
  const bool ok = std::all_of(parts.begin(), parts.end(),
                              [&](const std::string& p) { return message.find(p) != std::string::npos; });
  if (!ok) fprintf(stderr, "message: %s\n", message.c_str());
  return ok;
}

// Keeps the queue full with reads of random places and sizes, the tail of the file among them.
void test_random_reads(const std::string& path, const std::vector<uint8_t>& want, io::ReaderOptions options) {
  const size_t slot = 16 * 4096;
  const Buffer memory(options.depth * slot);
  const auto reader = io::open_reader(path, options);
  const size_t a = reader->alignment();
  CHECK(reader->file_bytes() == want.size() && reader->depth() == options.depth);
  std::mt19937_64 rng(3);
  std::vector<Read> slots(options.depth);
  std::vector<uint64_t> free(options.depth), tags(options.depth);
  for (size_t i = 0; i < options.depth; ++i) free[i] = i;
  std::set<uint64_t> in_flight;
  for (size_t ended = 0; ended < 2000;) {
    std::vector<Read> batch;
    for (uint64_t tag : free) {
      const uint64_t offset = rng() % want.size() / a * a, end = (want.size() + a - 1) / a * a;
      const size_t size = std::min<uint64_t>(end - offset, std::max(a, rng() % slot / a * a));
      slots[tag] = {offset, {memory.data() + tag * slot, size}, tag};
      batch.push_back(slots[tag]);
      CHECK(in_flight.insert(tag).second);
    }
    reader->submit(batch);
    free.resize(reader->wait(tags, 1 + rng() % in_flight.size()));
    std::copy_n(tags.begin(), free.size(), free.begin());
    for (uint64_t tag : free) {
      const Read& r = slots[tag];
      const size_t n = std::min<uint64_t>(r.dst.size(), want.size() - r.offset);
      CHECK(in_flight.erase(tag) == 1);
      CHECK(std::memcmp(r.dst.data(), &want[r.offset], n) == 0);
    }
    ended += free.size();
  }
}  // the reader goes with reads in flight: none may write into freed memory

void test_refusals(const std::string& path, const std::string& backend) {
  const auto reader = io::open_reader(path, {backend, 2, true, 0});
  const size_t a = reader->alignment();
  const Buffer memory(8 * 4096);
  uint8_t* p = memory.data();
  const auto refused = [&](Read r) { return error_of([&] { reader->submit({&r, 1}); }); };
  if (a > 1) {
    CHECK(says(refused({1, {p, a}, 0}), {path, "offset is not a multiple of " + std::to_string(a)}));
    CHECK(says(refused({0, {p + 1, a}, 0}), {path, "address is not a multiple"}));
    CHECK(says(refused({0, {p, a + 1}, 0}), {path, "size is not a multiple"}));
  }
  const uint64_t last = kBytes / 4096 * 4096;
  CHECK(says(refused({last, {p, 8 * 4096}, 0}), {path, "past the end", std::to_string(kBytes)}));
  CHECK(says(refused({last + 8 * 4096, {p, 4096}, 0}), {"past the end"}));
  CHECK(says(refused({UINT64_MAX / 4096 * 4096, {p, 4096}, 0}), {"past the end"}));
  CHECK(says(refused({0, {p, 0}, 0}), {"size must be"}));
  const Read three[] = {{0, {p, 4096}, 1}, {8192, {p + 4096, 4096}, 2}, {0, {p + 8192, 4096}, 3}};
  const Read half_bad[] = {{0, {p, 4096}, 1}, {last + 8192, {p + 4096, 4096}, 2}};
  CHECK(says(error_of([&] { reader->submit(half_bad); }), {"read 1"}));
  uint64_t tags[2];
  CHECK(reader->wait(tags, 0) == 0);  // nothing was queued
  CHECK_THROWS(InvalidArgument, reader->wait(tags, 1));
  CHECK(reader->submit(three) == 2);  // no room for more
  CHECK(reader->submit({three + 2, 1}) == 0);
  CHECK(reader->wait(tags, 2) == 2);
  CHECK(reader->submit({three + 2, 1}) == 1 && reader->wait(tags, 1) == 1 && tags[0] == 3);
  CHECK(reader->requests() == 3);
}

void test_truncated_after_open(const fs::path& dir, const std::string& backend) {
  const std::string path = (dir / "shrinks").string();
  std::ofstream(path) << std::string(65536, 'x');
  const auto reader = io::open_reader(path, {backend, 4, true});
  CHECK(truncate(path.c_str(), 4096) == 0);
  const Buffer memory(16384);
  const Read r{0, {memory.data(), 16384}, 0};
  reader->submit({&r, 1});
  uint64_t tag;
  CHECK(says(error_of([&] { reader->wait({&tag, 1}, 1); }), {path, "16384 bytes at offset 0", "got 4096"}));
}

void test_failed_read(const std::string& backend) {  // a page of our own memory that is not mapped: EFAULT
  const Buffer memory(4 * 4096);
  const auto reader = io::open_reader("/proc/self/exe", {backend, 4, true});
  const Read r{0, {reinterpret_cast<uint8_t*>(4096), 4096}, 0};
  reader->submit({&r, 1});
  uint64_t tag;
  CHECK(says(error_of([&] { reader->wait({&tag, 1}, 1); }), {"/proc/self/exe", "failed: Bad address"}));
}

void test_null(const std::string& path) {
  const auto reader = io::open_reader(path, {"null", 4, true});
  std::vector<uint8_t> memory(4096 + 4096, 5);
  auto* p = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 4095) / 4096 * 4096);
  const Read r{0, {p, 4096}, 9};
  reader->submit({&r, 1});
  uint64_t tag;
  CHECK(reader->wait({&tag, 1}, 1) == 1 && tag == 9);
  CHECK(std::all_of(memory.begin(), memory.end(), [](uint8_t v) { return v == 5; }));
}

void test_open(const fs::path& dir, const std::string& path) {
  CHECK(
      says(error_of([&] { io::open_reader((dir / "missing").string(), {}); }), {"missing", "No such file"}));
  CHECK(says(error_of([&] { io::open_reader(dir.string(), {}); }), {dir.string(), "not a regular file"}));
  CHECK_THROWS(InvalidArgument, io::open_reader(path, {"floppy", 4, true}));
  CHECK_THROWS(InvalidArgument, io::open_reader(path, {"auto", 0, true}));
  CHECK_THROWS(InvalidArgument, io::open_reader(path, {"auto", 5000, true}));
  std::ofstream(dir / "empty").close();
  for (const std::string& backend : backends())
    CHECK(io::open_reader((dir / "empty").string(), {backend, 4, true})->file_bytes() == 0);
  CHECK(io::open_reader(path, {"auto", 4, false})->alignment() == 1);
  if (!io::io_uring_works()) CHECK(!error_of([&] { io::open_reader(path, {"io_uring", 4, true}); }).empty());
}

void drop_from_cache(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY);
  fsync(fd);
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  close(fd);
}

void test_read_all(const std::string& path, const std::vector<uint8_t>& want) {
  const Buffer memory(kBytes + 8192);
  for (bool cached : {false, true})
    for (size_t offset : {0, 1, 512, 4096, 1 << 20, 5000})
      for (size_t size :
           {size_t{0}, size_t{1}, size_t{511}, size_t{4096}, size_t{4097}, size_t{2} << 20, kBytes - offset})
        for (size_t shift : {0, 1, 512}) {
          if (offset + size > kBytes) continue;
          if (!cached) drop_from_cache(path);
          std::memset(memory.data(), 0xee, memory.size());
          io::read_all(path, offset, {memory.data() + shift, size});
          CHECK(std::memcmp(memory.data() + shift, want.data() + offset, size) == 0);
          CHECK(memory.data()[shift + size] == 0xee && (shift == 0 || memory.data()[shift - 1] == 0xee));
        }
  const std::string error = error_of([&] { io::read_all(path, kBytes - 10, {memory.data(), 20}); });
  CHECK(says(error, {path, "20 bytes at offset " + std::to_string(kBytes - 10), "got 10"}));
  CHECK(says(error_of([&] { io::read_all(path, kBytes + 10, {memory.data(), 20}); }), {"got 0"}));
  CHECK(!error_of([&] { io::read_all("/nonexistent/file", 0, {memory.data(), 1}); }).empty());
}

void test_drive_rate(const std::string& path) {
  for (const std::string& backend : backends())
    for (bool random : {false, true}) {
      const io::DriveRate rate = io::measure_drive(path, 4096, 4, backend, random, 0.02);
      CHECK(rate.reads_per_s > 10 && rate.cpu_us_per_read > 0);
      CHECK(std::abs(rate.bytes_per_s - 4096 * rate.reads_per_s) <= 1e-9 * rate.bytes_per_s);
    }
  CHECK_THROWS(IoError, io::measure_drive(path, size_t{1} << 24, 4, "auto", true, 0.01));
}

void test_folder(const fs::path& dir) {
  const std::vector<uint8_t> data = content();
  const std::string path = write_file(dir, data);
  for (const std::string& backend : backends())
    for (bool direct : {true, false})
      for (size_t depth : {1, 7, 64}) test_random_reads(path, data, {backend, depth, direct});
  for (const std::string& backend : backends()) test_refusals(path, backend);
  test_null(path);
  test_open(dir, path);
  test_read_all(path, data);
  test_drive_rate(path);
  for (const std::string& backend : backends()) {
    if (backend == "memory") continue;  // took its copy before
    test_truncated_after_open(dir, backend);
    test_failed_read(backend);
  }
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
