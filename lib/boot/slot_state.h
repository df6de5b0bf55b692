// The life of a slot: what may follow what, and who may do it. One word, changed by compare and
// swap, so that a reader, who fills and who evicts agree without a lock.
//
//   free ─take→ coming ─publish→ there ─evict→ evicted ─release→ free
//                  └────abandon────────────────────────────────→ free
//
// The array entry that leads to a slot is written after the word: `coming` when it is taken, to be
// read when it is published, absent when it is evicted or abandoned. What a reader has found in an
// entry it may read until its request ends: release comes after the end of all requests that were
// in flight when the entry was cleared.
//
// Pure. tests/slot_state_test.cpp runs all orders of the steps of two readers, one who fills and
// one who evicts.
#pragma once

#include <cstdint>
#include <optional>

namespace tplstore {

enum class SlotLife : uint32_t { kFree, kComing, kThere, kEvicted };

struct SlotState {
  SlotLife life = SlotLife::kFree;
  bool was_used = false;  // read, since the clock's hand was here
  bool is_ahead = false;  // taken in ahead of who will read it, and not read yet
  uint32_t windows = 0;   // open windows that it belongs to

  bool operator==(const SlotState&) const = default;

  constexpr uint32_t word() const {
    return static_cast<uint32_t>(life) | uint32_t{was_used} << 2 | uint32_t{is_ahead} << 3 |
           windows << 4;
  }
  static constexpr SlotState of(uint32_t word) {
    return {static_cast<SlotLife>(word & 3), (word & 4) != 0, (word & 8) != 0, word >> 4};
  }

  // Each gives what the slot is then, or nothing where it must not be done.

  // By who fills, in the name of a window.
  std::optional<SlotState> take(bool ahead) const {
    if (life != SlotLife::kFree) return {};
    return SlotState{SlotLife::kComing, false, ahead, 1};
  }
  std::optional<SlotState> publish() const {
    if (life != SlotLife::kComing) return {};
    return SlotState{SlotLife::kThere, true, is_ahead, windows};
  }
  std::optional<SlotState> abandon() const {
    if (life != SlotLife::kComing) return {};
    return SlotState{};
  }
  // By a reader.
  std::optional<SlotState> use() const {
    if (life != SlotLife::kThere || (was_used && !is_ahead)) return {};
    return SlotState{life, true, false, windows};
  }
  // It belongs to one more window, or to one less.
  std::optional<SlotState> join() const {
    if (life != SlotLife::kThere) return {};
    return SlotState{life, was_used, is_ahead, windows + 1};
  }
  std::optional<SlotState> leave() const {
    if (windows == 0) return {};
    return SlotState{life, was_used, is_ahead, windows - 1};
  }
  // By who evicts: the hand of the clock comes by, or what it holds is wanted no more.
  std::optional<SlotState> pass() const {
    if (life != SlotLife::kThere || windows != 0) return {};
    if (was_used) return SlotState{life, false, is_ahead, 0};
    return evict();
  }
  std::optional<SlotState> evict() const {
    if (life != SlotLife::kThere || windows != 0) return {};
    return SlotState{SlotLife::kEvicted, false, is_ahead, 0};
  }
  std::optional<SlotState> release() const {
    if (life != SlotLife::kEvicted) return {};
    return SlotState{};
  }
};

}  // namespace tplstore
