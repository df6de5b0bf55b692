#include "memory/memory_image.h"

#include <algorithm>

namespace tplstore {

const MemoryImage::Page* MemoryImage::find_page(uint64_t index) const {
  const auto found = chunks_.find(index / kChunkPages);
  return found == chunks_.end() ? nullptr : found->second->pages[index % kChunkPages].get();
}

MemoryImage::Chunk& MemoryImage::writable_chunk(uint64_t chunk_index) {
  std::shared_ptr<Chunk>& chunk = chunks_[chunk_index];
  if (!chunk) {
    chunk = std::make_shared<Chunk>();
  } else if (chunk.use_count() > 1) {
    chunk = std::make_shared<Chunk>(*chunk);
  }
  return *chunk;
}

MemoryImage::Page& MemoryImage::writable_page(uint64_t index) {
  Chunk& chunk = writable_chunk(index / kChunkPages);
  std::shared_ptr<Page>& page = chunk.pages[index % kChunkPages];
  if (!page) {
    page = std::make_shared<Page>();
    ++chunk.page_count;
    ++page_count_;
  } else if (page.use_count() > 1) {
    page = std::make_shared<Page>(*page);
  }
  return *page;
}

void MemoryImage::drop_page(uint64_t index) {
  if (find_page(index) == nullptr) return;
  Chunk& chunk = writable_chunk(index / kChunkPages);
  chunk.pages[index % kChunkPages].reset();
  --page_count_;
  if (--chunk.page_count == 0) chunks_.erase(index / kChunkPages);
}

void MemoryImage::read(uint64_t offset, MutableBytes into) const {
  while (!into.empty()) {
    const uint64_t in_page = offset % kBlockBytes;
    const size_t count = std::min<uint64_t>(into.size(), kBlockBytes - in_page);
    if (const Page* page = find_page(offset / kBlockBytes)) {
      std::memcpy(into.data(), page->data() + in_page, count);
    } else {
      std::memset(into.data(), 0, count);
    }
    offset += count;
    into = into.subspan(count);
  }
}

void MemoryImage::write(uint64_t offset, Bytes from) {
  if (from.empty()) return;
  size_bytes_ = std::max(size_bytes_, offset + from.size());
  while (!from.empty()) {
    const uint64_t in_page = offset % kBlockBytes;
    const size_t count = std::min<uint64_t>(from.size(), kBlockBytes - in_page);
    std::memcpy(writable_page(offset / kBlockBytes).data() + in_page, from.data(), count);
    offset += count;
    from = from.subspan(count);
  }
}

void MemoryImage::punch(uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  for (const uint64_t page : allocated_pages(offset, length)) {
    const uint64_t from = std::max(offset, page);
    const uint64_t to = std::min(end, page + kBlockBytes);
    if (to - from == kBlockBytes) {
      drop_page(page / kBlockBytes);
    } else {
      std::memset(writable_page(page / kBlockBytes).data() + (from - page), 0, to - from);
    }
  }
}

void MemoryImage::set_size(uint64_t size_bytes) {
  // The rest of the last page too must read as zeroes if the object grows again.
  if (size_bytes < size_bytes_) punch(size_bytes, round_up(size_bytes_, kBlockBytes) - size_bytes);
  size_bytes_ = size_bytes;
}

uint64_t MemoryImage::bytes_to_allocate(uint64_t offset, uint64_t length) const {
  if (length == 0) return 0;
  const uint64_t pages = blocks_of(offset + length) - offset / kBlockBytes;
  return (pages - allocated_pages(offset, length).size()) * kBlockBytes;
}

std::vector<uint64_t> MemoryImage::allocated_pages(uint64_t offset, uint64_t length) const {
  std::vector<uint64_t> offsets;
  if (length == 0) return offsets;
  const uint64_t first = offset / kBlockBytes;
  const uint64_t last = (offset + length - 1) / kBlockBytes;
  for (auto chunk = chunks_.lower_bound(first / kChunkPages);
       chunk != chunks_.end() && chunk->first <= last / kChunkPages; ++chunk) {
    for (uint64_t i = 0; i < kChunkPages; ++i) {
      const uint64_t index = chunk->first * kChunkPages + i;
      if (chunk->second->pages[i] && index >= first && index <= last) {
        offsets.push_back(index * kBlockBytes);
      }
    }
  }
  return offsets;
}

std::optional<uint64_t> MemoryImage::next_allocated_page(uint64_t offset) const {
  const uint64_t first = offset / kBlockBytes;
  for (auto chunk = chunks_.lower_bound(first / kChunkPages); chunk != chunks_.end(); ++chunk) {
    for (uint64_t i = 0; i < kChunkPages; ++i) {
      const uint64_t index = chunk->first * kChunkPages + i;
      if (chunk->second->pages[i] && index >= first) return index * kBlockBytes;
    }
  }
  return {};
}

}  // namespace tplstore
