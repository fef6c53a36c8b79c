// The back end of threads where the system gives it few, or none.
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"
#include "base/memory.h"
#include "check.h"
#include "io/reader.h"

using namespace hotset;
namespace fs = std::filesystem;

namespace {
std::atomic<int> left = 1000;  // threads that may be started
}

// In place of the C library's: refuses like a cgroup with too many tasks.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*work)(void*),
                              void* of) noexcept {
  static const auto real = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return left-- > 0 ? real(thread, attributes, work, of) : EAGAIN;
}

namespace {

constexpr size_t kBlock = 4096, kBlocks = 40;

void test_few_threads_read_all(const std::string& path, int threads) {
  left = threads;
  const Buffer memory(kBlocks * kBlock);
  const auto reader = io::open_reader(path, {"pread", 8, true, 0});
  CHECK(left < 0);  // it wanted more
  size_t sent = 0, done = 0;
  while (done < kBlocks) {
    for (; sent < kBlocks; ++sent) {
      const io::Read read{sent * kBlock, {memory.data() + sent * kBlock, kBlock}, sent};
      if (reader->submit({&read, 1}) == 0) break;
    }
    uint64_t tags[8];
    done += reader->wait(tags, 1);
  }
  for (size_t i = 0; i < kBlocks * kBlock; ++i)
    if (!CHECK(memory.data()[i] == static_cast<uint8_t>(i / 100))) break;
}

void test_no_thread(const std::string& path) {
  left = 0;
  std::string error;
  try {
    io::open_reader(path, {"pread", 8, true});
  } catch (const IoError& e) {
    error = e.what();
  }
  for (const std::string& part : {path, std::string("none of 8 threads"), std::string(strerror(EAGAIN))})
    if (!CHECK(error.find(part) != std::string::npos)) fprintf(stderr, "message: %s\n", error.c_str());
}

}  // namespace

int main() {
  char name[] = "/var/tmp/hotset-io-XXXXXX";
  const fs::path folder = mkdtemp(name);
  const std::string path = (folder / "data").string();
  std::string data(kBlocks * kBlock, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i / 100);
  std::ofstream(path, std::ios::binary) << data;
  for (const int threads : {1, 3, 7}) test_few_threads_read_all(path, threads);
  test_no_thread(path);
  fs::remove_all(folder);
  return check::report();
}
