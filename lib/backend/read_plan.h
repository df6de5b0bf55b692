// What a request has to read: pieces of any objects, of any backends.
//
// A piece may be checked: whoever adds it is asked whether it may be read where it is, looks at
// what was read, and reads it elsewhere when it could not be read or is not right. And there may be
// steps that follow the reading, for what is read into a memory that others share.
//
// Allocates only when it grows past what a usual request needs. Not thread-safe; one per request,
// on its stack.
#pragma once

#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/grace_period.h"

namespace tplstore {

// Who answers for checked pieces.
class ReadCheck {
 public:
  // Whether the piece may be read now.
  virtual bool begin() noexcept = 0;
  // Follows each begin() that was true. Whether the bytes are there, and right; `error`: what
  // reading them failed with.
  virtual bool end(const ReadPiece& piece, const std::exception_ptr& error) noexcept = 0;
  // Reads what could not be read, or was not right, from where else it is.
  virtual void read_elsewhere(uint64_t offset, MutableBytes into) = 0;

 protected:
  ~ReadCheck() = default;
};

// What a request does with what it has read for more than itself.
class ReadStep {
 public:
  virtual ~ReadStep() = default;
  // Comes when all pieces have been read.
  virtual void use_what_was_read() = 0;
  // Comes after all steps' use.
  virtual void wait_for_others() = 0;
};

class ReadPlan {
 public:
  void add(Object& object, uint64_t offset, MutableBytes into) {
    plain_.add({&object, offset, into});
  }
  void add_checked(Object& object, uint64_t offset, MutableBytes into, ReadCheck& check) {
    checked_.add({{&object, offset, into}, &check, false});
  }
  // When it fails before, the step is gone with the plan.
  void add_step(std::unique_ptr<ReadStep> step) { steps_.push_back(std::move(step)); }
  // What a request looks up while it plans lasts as long as the plan: it is counted as one that is
  // in flight, from before the first look. Two periods at most.
  void enter(GracePeriod& period) {
    if (entered_[0] == &period || entered_[1] == &period) return;
    const size_t which = entered_[0] == nullptr ? 0 : 1;
    requests_[which].emplace(period);
    entered_[which] = &period;
  }
  size_t size() const { return plain_.size() + checked_.size(); }

  // Reads all of it: one piece by a plain read, several as one batch for each backend. Throws what
  // one of them failed with.
  void run() {
    if (checked_.size() != 0) [[unlikely]]
      run_checked();
    std::span<ReadPiece> rest = plain_.pieces();
    if (rest.size() == 1) {
      rest[0].object->read(rest[0].offset, rest[0].into);
    } else {
      for_each_owner(rest, [](Backend& owner, std::span<ReadPiece> pieces) {
        owner.read_batch(pieces).throw_first();
      });
    }
    if (!steps_.empty()) [[unlikely]]
      run_steps();
  }

 private:
  struct CheckedPiece : ReadPiece {
    ReadCheck* check;
    bool is_right;  // it was read, and is
  };
  static bool is_checked_alike(const ReadPiece&, const ReadPiece&) { return true; }
  static bool is_checked_alike(const CheckedPiece& one, const CheckedPiece& other) {
    return one.check == other.check;
  }

  template <typename Piece, size_t kUsual>
  class PieceList {
   public:
    // Pieces that continue the one before, in the object and in memory, are joined with it.
    void add(const Piece& piece) {
      if (count_ > 0) {
        Piece& last = pieces()[count_ - 1];
        if (last.object == piece.object && last.offset + last.into.size() == piece.offset &&
            last.into.data() + last.into.size() == piece.into.data() &&
            is_checked_alike(last, piece)) {
          last.into = MutableBytes(last.into.data(), last.into.size() + piece.into.size());
          return;
        }
      }
      if (count_ < inline_.size()) {
        inline_[count_] = piece;
      } else {
        if (count_ == inline_.size()) overflow_.assign(inline_.begin(), inline_.end());
        overflow_.push_back(piece);
      }
      ++count_;
    }
    size_t size() const { return count_; }
    std::span<Piece> pieces() {
      return count_ <= inline_.size() ? std::span(inline_.data(), count_)
                                      : std::span<Piece>(overflow_);
    }

   private:
    size_t count_ = 0;
    std::array<Piece, kUsual> inline_;
    std::vector<Piece> overflow_;
  };

  // Sorts the pieces by the backends of their objects and visits those of each.
  template <typename Visit>
  static void for_each_owner(std::span<ReadPiece> rest, Visit visit) {
    const auto owner_of = [](const ReadPiece& piece) { return &piece.object->owner(); };
    if (!std::ranges::is_sorted(rest, std::less(), owner_of))
      std::ranges::sort(rest, std::less(), owner_of);
    while (!rest.empty()) {
      Backend& owner = *owner_of(rest[0]);
      const auto others = std::ranges::find_if(
          rest, [&](const ReadPiece& piece) { return owner_of(piece) != &owner; });
      const auto count = static_cast<size_t>(others - rest.begin());
      visit(owner, rest.first(count));
      rest = rest.subspan(count);
    }
  }
  void run_checked();
  void run_steps();

  std::array<GracePeriod*, 2> entered_{};
  std::array<std::optional<GracePeriod::Request>, 2> requests_;  // end when all else has
  PieceList<ReadPiece, 16> plain_;
  PieceList<CheckedPiece, 4> checked_;
  std::vector<std::unique_ptr<ReadStep>> steps_;
};

}  // namespace tplstore
