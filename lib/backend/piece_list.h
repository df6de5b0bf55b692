// A list of read pieces that allocates only when it grows past what a usual request needs.
// Not thread-safe; one per request, on its stack.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace tplstore {

class PieceList {
 public:
  void add(const ReadPiece& piece) {
    if (count_ > 0 && last().object == piece.object &&
        last().offset + last().into.size() == piece.offset &&
        last().into.data() + last().into.size() == piece.into.data()) {
      last().into = MutableBytes(last().into.data(), last().into.size() + piece.into.size());
      return;
    }
    if (count_ < inline_.size()) {
      inline_[count_] = piece;
    } else {
      if (count_ == inline_.size()) overflow_.assign(inline_.begin(), inline_.end());
      overflow_.push_back(piece);
    }
    ++count_;
  }
  std::span<const ReadPiece> pieces() const {
    return count_ <= inline_.size() ? std::span(inline_.data(), count_)
                                    : std::span<const ReadPiece>(overflow_);
  }
  size_t size() const { return count_; }
  // Reads all pieces: alone as a plain read, several as one batch.
  void read_all(Backend& backend) const {
    if (count_ == 1) {
      inline_[0].object->read(inline_[0].offset, inline_[0].into);
    } else if (count_ > 1) {
      backend.read_batch(pieces());
    }
  }

 private:
  ReadPiece& last() { return count_ <= inline_.size() ? inline_[count_ - 1] : overflow_.back(); }

  size_t count_ = 0;
  std::array<ReadPiece, 16> inline_;
  std::vector<ReadPiece> overflow_;
};

}  // namespace tplstore
