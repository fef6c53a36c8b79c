// Large aligned memory. Huge pages because decode streams gigabytes: 44 -> 53 GB/s here (TLB misses).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hotset {

// Owns an anonymous mapping, zero-filled, aligned to 2 MiB if >= 2 MiB (else to a page). Pages come on first
// touch.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes, bool huge_pages = true);  // throws OutOfMemory
  ~Buffer();
  Buffer(Buffer&&) noexcept;
  Buffer& operator=(Buffer&&) noexcept;
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // Gives the pages from the first whole one after `offset` on back to the system, for as long as nobody
  // touches them: they are zero then. False where the system keeps them (locked memory).
  bool release_from(size_t offset);

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0, mapped_ = 0;
};

// A read-only mapping of a whole file. Throws IoError.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const char* path);
  ~MappedFile();
  MappedFile(MappedFile&&) noexcept;
  MappedFile& operator=(MappedFile&&) noexcept;
  std::span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace hotset
