// The copies that are in a directory of the tier, as far as this process knows: how large they are,
// when each was last read, and which are damaged.
//
// Other processes of the host put copies there and take some away, so this is brought up to date by
// listing the directory from time to time, and what is not in here may be there nevertheless. Times
// of reading are this process' own: what it finds there counts as read when it was found.
//
// Thread safety: all methods. The fields of a Copy may be changed without the mutex.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/mutex.h"

namespace tplstore {

class CopyInventory {
 public:
  struct Copy {
    uint64_t bytes = 0;
    std::atomic<int64_t> read_ns{0};
    std::atomic<bool> is_damaged{false};
  };

  // One that was found, or put, there.
  std::shared_ptr<Copy> add(const Hash128& name, uint64_t bytes, int64_t now_ns);
  std::shared_ptr<Copy> find(const Hash128& name) const;
  void remove(const Hash128& name);

  std::vector<Hash128> names() const;
  std::vector<Hash128> damaged() const;
  uint64_t count() const;
  uint64_t bytes() const;
  uint64_t bytes_of(const std::function<bool(const Hash128&)>& is_meant) const;

  // Room for a copy that is on its way, as long as this exists.
  class Room {
   public:
    explicit Room(CopyInventory& inventory, uint64_t bytes);
    ~Room();
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;

   private:
    CopyInventory& inventory_;
    const uint64_t bytes_;
  };
  // What is there and what is on its way.
  uint64_t claimed_bytes() const;

  // The copy read least recently, if that was not after `latest_ns`.
  std::optional<Hash128> oldest(int64_t latest_ns);

 private:
  mutable Mutex mutex_;
  std::map<Hash128, std::shared_ptr<Copy>> copies_ GUARDED_BY(mutex_);
  uint64_t bytes_ GUARDED_BY(mutex_) = 0;
  uint64_t coming_bytes_ GUARDED_BY(mutex_) = 0;
  // No copy was read last before this.
  int64_t all_read_since_ns_ GUARDED_BY(mutex_) = INT64_MIN;
};

}  // namespace tplstore
