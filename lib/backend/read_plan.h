// What a request has to read: pieces of any objects, of any backends.
//
// Allocates only when it grows past what a usual request needs. Not thread-safe; one per request,
// on its stack.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace tplstore {

class ReadPlan {
 public:
  // Pieces that continue the one before, in the object and in memory, are joined with it.
  void add(Object& object, uint64_t offset, MutableBytes into) {
    if (count_ > 0) {
      ReadPiece& last = pieces()[count_ - 1];
      if (last.object == &object && last.offset + last.into.size() == offset &&
          last.into.data() + last.into.size() == into.data()) {
        last.into = MutableBytes(last.into.data(), last.into.size() + into.size());
        return;
      }
    }
    const ReadPiece piece{&object, offset, into};
    if (count_ < inline_.size()) {
      inline_[count_] = piece;
    } else {
      if (count_ == inline_.size()) overflow_.assign(inline_.begin(), inline_.end());
      overflow_.push_back(piece);
    }
    ++count_;
  }
  size_t size() const { return count_; }

  // Reads all of it: one piece by a plain read, several as one batch for each backend. Throws what
  // one of them failed with.
  void run() {
    if (count_ == 1) return inline_[0].object->read(inline_[0].offset, inline_[0].into);
    std::span<ReadPiece> rest = pieces();
    const auto owner_of = [](const ReadPiece& piece) { return &piece.object->owner(); };
    if (!std::ranges::is_sorted(rest, std::less(), owner_of))
      std::ranges::sort(rest, std::less(), owner_of);
    while (!rest.empty()) {
      Backend& owner = *owner_of(rest[0]);
      const auto others = std::ranges::find_if(
          rest, [&](const ReadPiece& piece) { return owner_of(piece) != &owner; });
      const auto count = static_cast<size_t>(others - rest.begin());
      owner.read_batch(rest.first(count)).throw_first();
      rest = rest.subspan(count);
    }
  }

 private:
  std::span<ReadPiece> pieces() {
    return count_ <= inline_.size() ? std::span(inline_.data(), count_)
                                    : std::span<ReadPiece>(overflow_);
  }

  size_t count_ = 0;
  std::array<ReadPiece, 16> inline_;
  std::vector<ReadPiece> overflow_;
};

}  // namespace tplstore
