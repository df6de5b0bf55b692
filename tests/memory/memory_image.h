// The sparse content of one object in memory, cheap to copy: copies share their pages until one of
// them writes.
//
// Space is counted in pages of 4 KiB, as file systems do: a page is allocated when something is
// written to it, zeroes included, and given back when it is punched as a whole.
//
// Thread safety: none, and images that share pages count as one object. Errors: std::bad_alloc
// only.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"

namespace tplstore {

class MemoryImage {
 public:
  uint64_t size_bytes() const { return size_bytes_; }
  uint64_t allocated_bytes() const { return page_count_ * kBlockBytes; }

  // Bytes that were never written, or past the end, read as zeroes.
  void read(uint64_t offset, MutableBytes into) const;
  void write(uint64_t offset, Bytes from);
  void punch(uint64_t offset, uint64_t length);
  // Grows or shrinks.
  void set_size(uint64_t size_bytes);

  // How many bytes a write of the range would allocate.
  uint64_t bytes_to_allocate(uint64_t offset, uint64_t length) const;
  // Offsets of the allocated pages that touch the range, ascending.
  std::vector<uint64_t> allocated_pages(uint64_t offset, uint64_t length) const;
  // Offset of the first allocated page that ends behind `offset`.
  std::optional<uint64_t> next_allocated_page(uint64_t offset) const;
  bool is_allocated(uint64_t offset) const { return find_page(offset / kBlockBytes) != nullptr; }

 private:
  using Page = std::array<std::byte, kBlockBytes>;
  static constexpr uint64_t kChunkPages = 64;
  struct Chunk {
    std::array<std::shared_ptr<Page>, kChunkPages> pages;
    uint64_t page_count = 0;
  };

  const Page* find_page(uint64_t index) const;
  Chunk& writable_chunk(uint64_t chunk_index);
  Page& writable_page(uint64_t index);
  void drop_page(uint64_t index);

  uint64_t size_bytes_ = 0;
  uint64_t page_count_ = 0;
  std::map<uint64_t, std::shared_ptr<Chunk>> chunks_;
};

}  // namespace tplstore
