// Which profiles are read ahead (boot/prefetch.h): one reading for each profile, however many
// volumes boot by it, for as long as one of their windows is open; and `boot warm`.
//
// Packs are read one after the other, each before anything else for a second: what one has the
// next need not, which is left out when little of its profile is missing by then. A reading ends
// when all is in memory, when it has its share of the memory, and when nobody has found anything of
// it for half a minute.
//
// Thread safety: step(), has_waiting() and stop() from one thread, the rest from any. Errors: the
// backend's and the disk's, from warm() only.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "boot/boot_windows.h"
#include "boot/learning.h"
#include "boot/prefetch.h"

namespace tplstore {

struct BootWarm {
  uint64_t wanted_bytes = 0;
  uint64_t cached_bytes = 0;  // of these, what is in memory now
};

class ReadAhead {
 public:
  ReadAhead(const BootOptions& options, Backend& store, const HashSecret& secret,
            CellMemory& memory, BootWindows& windows)
      : options_(options), store_(store), secret_(secret), memory_(memory), windows_(windows) {}

  // Begins what the windows ask for, and reads a few requests of each reading; whether there is
  // more to do.
  bool step();
  // Whether boots wait, for their turn or for room to read in.
  bool has_waiting() const { return !waiting_.empty(); }
  void stop();
  // Reads what the profile has, as far as there is room. ENOENT without a profile; EINTR when
  // `interrupted` says so.
  BootWarm warm(BootDisk& disk, const std::function<void(uint64_t done, uint64_t bytes)>& progress,
                const std::function<bool()>& interrupted);
  // Whether reading the profile of this owner took so long, the last time, that a pack helps.
  bool was_slow(const Uuid& owner);

 private:
  // When all of a profile was read: as long as these stay as they are it is in memory still.
  struct Done {
    uint64_t number = 0;  // of the profile
    uint64_t evictions = 0;
    uint64_t refused = 0;

    bool operator==(const Done&) const = default;
  };

  // Where packs of a profile may be, the last one first.
  struct PackPlace {
    NumberedObject object;
    Uuid owner;
  };
  // A profile that is being read for these boots, in the name of the first.
  struct Reading {
    std::shared_ptr<const Profile> profile;
    std::optional<CellMemory::Beside> beside;
    std::unique_ptr<Prefetch> prefetch;
    std::vector<PackPlace> packs;  // that were not opened yet
    bool has_looked = false;       // whether something is in these places
    std::vector<std::shared_ptr<FollowedBoot>> boots;
    Done begun;
    uint64_t filled_before = 0;  // what everybody had read into memory
    uint64_t order = 0;          // of beginning
    int64_t begun_ms = 0;
    int64_t spent_ms = 0;  // on reading it, not on others' meanwhile
    int64_t used_ms = 0;   // when somebody had found something in memory, the last time
    uint64_t hits = 0;

    bool has_packs() const { return prefetch->has_pack() || !packs.empty(); }
  };

  // Where a template's profile begins.
  struct Beginning {
    uint64_t number = 0;  // of the profile
    std::vector<ProfileRun> runs;
  };

  Done now(uint64_t number);
  // Whether all of a profile was read, and is in memory.
  bool is_done(const Uuid& owner, uint64_t number);
  void begin_waiting();
  void set_heads();
  // False where there is no room yet for what is read into.
  bool begin(const std::shared_ptr<FollowedBoot>& boot);
  // Whose turn it is while there are packs to read; nothing when there are none.
  const Reading* first_with_packs() const;
  // Whether all else waits for its packs.
  bool is_first(const Reading& reading) const;
  // Leaves out places where none is.
  void look_for_packs(Reading& reading);
  bool step(const Uuid& owner, Reading& reading);
  // Of the volume's profile, and of its template.
  std::vector<PackPlace> places_of_packs(const BootDisk& disk, const FoundProfile& found,
                                         const Profile& profile) const;
  // Opens the next one where it helps; false when none of these does.
  bool take_next_pack(std::vector<PackPlace>& places, BootDisk& disk, const Profile& profile,
                      Prefetch& prefetch);

  const BootOptions& options_;
  Backend& store_;
  const HashSecret& secret_;
  CellMemory& memory_;
  BootWindows& windows_;

  std::map<Uuid, Reading> readings_;  // by the profile's owner
  std::map<Uuid, Done> done_;         // likewise
  std::map<Uuid, Beginning> beginnings_;
  uint64_t readings_begun_ = 0;
  std::deque<std::shared_ptr<FollowedBoot>> waiting_;
  std::optional<PrefetchBuffer> buffer_;

  Mutex mutex_;
  std::map<Uuid, bool> was_slow_ GUARDED_BY(mutex_);
};

}  // namespace tplstore
