// Who may be in a directory of the tier, and when that is to be left alone.
//
// Every operation on the directory stands between begin() and end(). One that hangs holds up the
// operations that are in it and, from when that can be seen on, none that comes later: begin()
// refuses while at least kFewOperations are unanswered and none has ended for kStallNs. It is off,
// for good, after kErrorsMax errors in a row, after an operation that took longer than kHangNs, and
// when something is unanswered and nothing has ended for so long. Who wants the directory back
// makes another gate; what is in this one stays in it.
//
// Thread safety: all. Nothing waits, allocates or throws. Times are of any clock that only rises.
#pragma once

#include <atomic>
#include <cstdint>

namespace tplstore {

class TierGate {
 public:
  static constexpr uint32_t kFewOperations = 4;
  static constexpr int64_t kStallNs = 100'000'000;
  static constexpr int64_t kHangNs = 5'000'000'000;
  static constexpr uint32_t kErrorsMax = 3;

  enum class Off : uint8_t { kNot, kErrors, kSlow, kHangs, kClosed };

  // False: not now, and end() is not called.
  bool begin(int64_t now_ns) noexcept {
    if (off() != Off::kNot) return false;
    // Before it counts itself: who finds that others are unanswered finds since when, too.
    if (unanswered_.load() == 0) progress_ns_.store(now_ns);
    const uint32_t others = unanswered_.fetch_add(1);
    if (others < kFewOperations || now_ns - progress_ns_.load() <= kStallNs) return true;
    unanswered_.fetch_sub(1);
    return false;
  }

  // `began_ns`: when it began, as far as that is known, else now.
  void end(int64_t began_ns, int64_t now_ns, bool has_failed) noexcept {
    progress_ns_.store(now_ns);
    unanswered_.fetch_sub(1);
    if (!has_failed) {
      if (errors_.load(std::memory_order_relaxed) != 0) errors_.store(0, std::memory_order_relaxed);
    } else if (errors_.fetch_add(1) + 1 >= kErrorsMax) {
      turn_off(Off::kErrors);
    }
    if (now_ns - began_ns > kHangNs) turn_off(Off::kSlow);
  }

  Off off() const noexcept { return off_.load(std::memory_order_relaxed); }
  // The first reason counts.
  void turn_off(Off why) noexcept {
    Off expected = Off::kNot;
    off_.compare_exchange_strong(expected, why);
  }
  // For who looks in from time to time: an operation that never ends says nothing itself.
  Off look(int64_t now_ns) noexcept {
    if (unanswered_.load() > 0 && now_ns - progress_ns_.load() > kHangNs) turn_off(Off::kHangs);
    return off();
  }

 private:
  std::atomic<Off> off_{Off::kNot};
  std::atomic<uint32_t> errors_{0};  // in a row
  std::atomic<uint32_t> unanswered_{0};
  // When an operation last ended, or began while there was none.
  std::atomic<int64_t> progress_ns_{0};
};

}  // namespace tplstore
