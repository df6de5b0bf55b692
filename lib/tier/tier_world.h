// What the directories of one tier have in common, and what they do with what is not the tier's.
//
// A thread that hangs in a directory is left behind when the tier ends. It owns what it uses; what
// belongs to others it reaches by way of a Visit only, and after leave() there is none.
//
// Thread safety: all.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "base/host.h"
#include "base/log.h"
#include "base/mutex.h"
#include "template/segment_copies.h"
#include "template/store_identity.h"
#include "tier/fill_queue.h"

namespace tplstore {

struct TierOptions {
  // Templates' manifests and the journals of imports; and where all segments are.
  Backend* store = nullptr;
  Backend* origin = nullptr;
  StoreIdentity identity{};
  HostIdentity host;
  // Called by threads that may be left behind: it must own what it needs. Throws where there is no
  // directory.
  std::function<std::unique_ptr<Backend>(const std::string& path)> open_directory;
  Log log = {};
  // A copy of this segment has come.
  std::function<void(const Hash128&)> look_again = [](const Hash128&) {};
  uint64_t fill_bytes_per_second = uint64_t{100} << 20;
  int64_t keep_ns = int64_t{86400} * 1'000'000'000;  // a copy that was read since is not evicted
  int64_t sweep_ns = int64_t{600} * 1'000'000'000;   // from one sweep to the next
  std::function<int64_t()> clock;                    // rises; the system's when it is empty
  std::chrono::milliseconds stop_patience{5000};     // with who hangs in a directory at the end
};

class TierWorld {
 public:
  // `changed`: open() may answer otherwise for many segments.
  TierWorld(TierOptions options, std::function<void()> changed);

  int64_t now_ns() const { return options.clock(); }
  const HashSecret& secret() const { return options.identity.secret; }

  // While one exists, what is not the tier's is there, if it is true. May be nested.
  class Visit {
   public:
    explicit Visit(TierWorld& world);
    ~Visit();
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;
    explicit operator bool() const { return is_in_; }

   private:
    TierWorld& world_;
    const bool is_in_;
  };
  // Waits for the visits that are under way; there are no others.
  void leave();

  // Each is a visit of its own, and nothing once there is no more.
  void log(const std::string& line) noexcept { log(LogLevel::kWarning, line); }
  void log(LogLevel level, const std::string& line) noexcept;
  void changed() noexcept;
  void look_again(const Hash128& name) noexcept;

  // The whole segment at the origin, with all hashes checked. ESHUTDOWN when the tier ends.
  ByteVector read_origin(const WantedSegment& wanted);

  const TierOptions options;
  FillRate rate;

 private:
  bool enter();

  std::function<void()> changed_;
  Mutex mutex_;
  ConditionVariable left_;
  uint32_t visits_ GUARDED_BY(mutex_) = 0;
  bool has_left_ GUARDED_BY(mutex_) = false;
};

// Throws EIO unless the bytes are those of a segment of this name; a block may be given up instead
// of having what its hash says, since the space of blocks that nothing refers to is given back.
void check_segment(Bytes segment, const Hash128& name, const HashSecret& secret);

}  // namespace tplstore
