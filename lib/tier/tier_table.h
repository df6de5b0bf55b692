// This host's table of the tier: the directories that hold copies of segments, and which of them
// has which part of the space of names.
//
// It is a small JSON file of the host, not of the store: several hosts share a store, and each has
// its own SSDs. Losing it costs speed and nothing else. lib/FORMAT.md has its form.
//
// Changes are made by one process at a time, which holds the lock of `tier.lock` beside the file,
// and replace the file as a whole, durably; so whoever reads it sees one table or the next.
// Everything in it is checked when it is read: it has the uuid of its store and the id of its host,
// a checksum, and a place for every position.
//
// When the ranges change, those of before are kept until every copy has moved (finish_move), and
// copies are read there too. Changes that come before that leave them as they are: most copies are
// where the oldest say.
//
// Thread safety: plain data. Errors: Error with the path of the file; EIO when it is damaged,
// EINVAL when it is of another store, host or format.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/files.h"
#include "base/host.h"
#include "tier/placement.h"

namespace tplstore {

struct TierEntry {
  enum class Kind {
    kSsd,    // has ranges
    kLocal,  // this host's full copy: has the whole space, and no ranges
  };
  Uuid uuid;
  std::string path;  // absolute
  uint64_t weight_bytes;
  Kind kind;
  bool is_leaving = false;  // has no ranges any more, and is forgotten when every copy has moved
};

struct TierTable {
  uint64_t generation = 0;  // rises with every change; 0: never written
  uint64_t layouts = 0;     // how often all ranges had to be laid out anew
  std::vector<TierEntry> directories;
  Placement placement;  // of those of kind ssd that are not leaving
  std::optional<Placement> before;

  // Where the table of a store is on this host unless somebody says where.
  static std::filesystem::path default_folder(const Uuid& store);
  static std::filesystem::path file_in(const std::filesystem::path& folder);
  // Nothing when there is no such file: then there is no tier.
  static std::optional<TierTable> load(const std::filesystem::path& file, const Uuid& store,
                                       const HostIdentity& host);

  const TierEntry* find(const Uuid& uuid) const;
  // Where a copy of a segment may be, the likeliest first: in the directory that has its position
  // now, in the one that had it before, in those of kind local. A leaving one is read, not filled.
  std::vector<Uuid> places_of(const Hash128& segment) const;

  // Errors are EINVAL, about the directory's path.
  void add(const TierEntry& entry);  // one that was leaving comes back
  void set_weight(const Uuid& uuid, uint64_t bytes);
  void remove(const Uuid& uuid);  // it is leaving from now on
  // Every copy is where it belongs: forgets the ranges of before and the directories that were
  // leaving.
  void finish_move();

 private:
  TierEntry& entry_in(const Uuid& uuid);
  void place();
};

// Holds the lock from its making to its end. Make it, change `table`, save.
class TierTableChange {
 public:
  // Makes the folder if it is not there. EBUSY when another process is changing the table. What
  // root makes belongs to the owner of the folder that it is made in.
  TierTableChange(const std::filesystem::path& folder, const Uuid& store, const HostIdentity& host);

  TierTable table;  // as it is; an empty one where there is none
  void save();      // as the next generation, durably

 private:
  void give_to_owner_around();

  const std::filesystem::path file_;
  const Uuid store_;
  const HostIdentity host_;
  FileDescriptor folder_, lock_;
};

}  // namespace tplstore
