// Bitmaps of what was touched, by regions, and a list of the touches, both made piece by piece.
#include "boot/window.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <new>

namespace tplstore {

const char* name_of(WindowEnd end) {
  switch (end) {
    case WindowEnd::kDone:
      return "done";
    case WindowEnd::kQuiet:
      return "quiet";
    case WindowEnd::kTime:
      return "time";
    case WindowEnd::kBytes:
      return "bytes";
    case WindowEnd::kClosed:
      return "closed";
    case WindowEnd::kUnconfirmed:
      break;
  }
  return "unconfirmed";
}

Window::Window(uint64_t disk_bytes, const WindowLimits& limits, int64_t opened_ms)
    : block_count_(blocks_of(disk_bytes)),
      limits_(limits),
      first_opened_ms_(opened_ms),
      opened_ms_(opened_ms),
      touched_ms_(opened_ms),
      folders_(blocks_of(disk_bytes) / kRegionBlocks / kFolderRegions + 1) {}

Window::~Window() {
  for (const auto& folder : folders_) {
    if (folder.load() == nullptr) continue;
    for (const auto& bits : *folder.load()) delete bits.load();
    delete folder.load();
  }
  for (const auto& chunk : chunks_) delete chunk.load();
}

template <typename T>
T* Window::get_or_make(std::atomic<T*>& place) noexcept {
  if (T* there = place.load(std::memory_order_acquire)) [[likely]]
    return there;
  const Lock guard(growing_);
  if (T* there = place.load(std::memory_order_relaxed)) return there;
  T* made = new (std::nothrow) T();
  if (made == nullptr) return nullptr;
  memory_bytes_.fetch_add(sizeof(T), std::memory_order_relaxed);
  place.store(made, std::memory_order_release);
  return made;
}

Window::Bits* Window::bits_of(uint64_t region) noexcept {
  Folder* folder = get_or_make(folders_[region / kFolderRegions]);
  return folder != nullptr ? get_or_make((*folder)[region % kFolderRegions]) : nullptr;
}

void Window::append(const ProfileRun& run) noexcept {
  blocks_.fetch_add(run.count, std::memory_order_relaxed);
  const uint32_t index = touches_.fetch_add(1, std::memory_order_relaxed);
  if (index >= kProfileRunsMax) return;
  Chunk* chunk = get_or_make(chunks_[index / kChunkTouches]);
  if (chunk != nullptr) (*chunk)[index % kChunkTouches] = run;
}

void Window::touch(uint32_t source, uint64_t first, uint64_t count, int64_t now_ms) noexcept {
  if (first >= block_count_) return;
  const uint64_t end = first + std::min(count, block_count_ - first);
  ProfileRun fresh{};
  const auto flush = [&] {
    if (fresh.count == 0) return;
    append(fresh);
    touched_ms_.store(now_ms, std::memory_order_relaxed);
    fresh.count = 0;
  };
  fresh.source = source;
  fresh.touched_ms = static_cast<uint32_t>(
      std::clamp<int64_t>(now_ms - opened_ms(), 0, std::numeric_limits<uint32_t>::max()));
  for (uint64_t at = first; at < end;) {
    if (is_full()) break;
    const uint64_t word_first = round_down(at, 64);
    const uint64_t word_end = std::min(end, word_first + 64);
    Bits* bits = bits_of(at / kRegionBlocks);
    if (bits == nullptr) break;
    Word& word = (*bits)[at % kRegionBlocks / 64];
    const uint64_t wanted = (~uint64_t{0} >> (64 - (word_end - at))) << (at - word_first);
    uint64_t left = wanted & ~word.load(std::memory_order_relaxed);
    if (left != 0) left &= ~word.fetch_or(left, std::memory_order_relaxed);
    while (left != 0) {
      const auto bit = static_cast<uint32_t>(std::countr_zero(left));
      const auto length = static_cast<uint32_t>(std::countr_one(left >> bit));
      if (fresh.count == 0 || fresh.end() != word_first + bit) {
        flush();
        fresh.first = word_first + bit;
      }
      fresh.count += length;
      left &= length == 64 ? 0 : ~(((uint64_t{1} << length) - 1) << bit);
    }
    at = word_end;
  }
  flush();
}

std::optional<WindowEnd> Window::find_end(int64_t now_ms) const {
  if (!is_confirmed()) {
    // Who looks now and then whether the disk is there reads this block alone, again and again.
    if (now_ms - opened_ms() >= limits_.quiet_ms || now_ms - first_opened_ms_ >= limits_.time_ms)
      return WindowEnd::kUnconfirmed;
    return std::nullopt;
  }
  if (blocks() * kBlockBytes >= limits_.bytes || is_full()) return WindowEnd::kBytes;
  if (now_ms - opened_ms() >= limits_.time_ms) return WindowEnd::kTime;
  if (now_ms - touched_ms_.load(std::memory_order_relaxed) >= limits_.quiet_ms)
    return WindowEnd::kQuiet;
  return std::nullopt;
}

std::vector<ProfileRun> Window::record() const {
  std::vector<ProfileRun> runs;
  const uint32_t count = std::min(touches_.load(std::memory_order_relaxed), kProfileRunsMax);
  runs.reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    const Chunk* chunk = chunks_[i / kChunkTouches].load(std::memory_order_relaxed);
    if (chunk != nullptr) runs.push_back((*chunk)[i % kChunkTouches]);
  }
  return runs;
}

}  // namespace tplstore
