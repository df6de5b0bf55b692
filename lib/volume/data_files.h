// The data files of a volume: one sparse object "data.<version>" for each version that wrote
// something, with block b of the disk at offset b × 4096.
//
// Files that may have unsynced writes (current's, and those frozen since) are known here, so that
// sync_written() makes all that was written durable. Frozen files are opened when first read and
// stay open; the backend bounds descriptors. Of a fork, the files of ancestors are those of other
// volumes, which it only reads.
//
// A DataFile lives until remove(), end_copies() or the end of this object. Who calls the first two
// has waited for requests that may still use it.
//
// Thread safety: all methods; begin() and advance() while no write is in flight.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "base/mutex.h"
#include "base/pointer_table.h"
#include "template/cell_cache.h"

namespace tplstore {

struct DataFile final : public CellSource {
  uint32_t version;
  std::unique_ptr<Object> object;
  CellFileKey key{};
  std::shared_ptr<CellFile> cells;    // or none; what is read of it when the version is frozen
  std::atomic<bool> is_dirty{false};  // written since the last sync began

  void plan_stored(uint64_t offset, MutableBytes into, ReadPlan& plan) override {
    plan.add(*object, offset, into);
  }
  // There is nothing to compare them with.
  bool are_sound(uint32_t, Bytes) override { return true; }
  bool read_sound(uint32_t, MutableBytes) override { return false; }
  void drop_cached() override { object->drop_cached(); }

  void write(uint64_t offset, Bytes from) {
    object->write(offset, from);
    note_write();
  }
  void grow(uint64_t disk_bytes) {
    object->grow(round_up(disk_bytes, kBlockBytes));
    note_write();
  }
  void note_write() { is_dirty.store(true, std::memory_order_release); }
};

// Whether all of a range occupies space, as far as the storage can tell.
bool has_data(Object& file, uint64_t offset, uint64_t length);

class DataFiles {
 public:
  // Of the volume that has this folder.
  DataFiles(Backend& backend, const Uuid& volume, std::string folder, CellCache* cells)
      : backend_(backend), volume_(volume), folder_(std::move(folder)), cells_(cells) {}

  static std::string name_of(const std::string& folder, uint32_t version);
  // Makes the file of a version exclusively and grows it to hold a disk of this size.
  static void create(Backend& backend, const std::string& folder, uint32_t version,
                     uint64_t disk_bytes);

  // Versions up to `last`, and past those of the row before, have their files in the folder of this
  // volume.
  struct Ancestor {
    uint32_t last;
    Uuid volume;
    std::string folder;
  };
  void set_ancestors(std::vector<Ancestor> ancestors);

  // The file of a frozen version or of current, open at least for reading; EIO when it is missing.
  Object& get(uint32_t version) { return *file_of_version(version).object; }
  // The same, where what is read of it may be in the memory of cells: of frozen versions.
  DataFile& get_frozen(uint32_t version) { return file_of_version(version); }

  // For the owner of the volume. Removes files above `current`, which a crash left behind.
  void remove_above(uint32_t current);
  // Opens current's file for writing.
  DataFile& begin(uint32_t current);
  // Syncs the volume's own files of this version and of later ones, whatever is known of their
  // writes, and reads of them show what is on the disk from then on: for what an earlier life
  // wrote.
  void settle_from(uint32_t version);
  // Makes the file of the next version ahead of time, if it is not there yet; durably. One that an
  // earlier call could not finish is made anew.
  void prepare(uint32_t version, uint64_t disk_bytes);
  // The prepared file becomes the one that is written.
  DataFile& advance(uint32_t version) noexcept;
  // Removes the volume's own file of a frozen version that no block is in, if there is one, and
  // gives its space back at once, whoever has it open. The version is none of an ancestor's: those
  // are neither removed by this volume nor in its list of versions.
  void remove(uint32_t version);
  // The volume's own file of a frozen version, for making holes; nothing when it is not there.
  std::unique_ptr<Object> open_for_punching(uint32_t version);
  // Remembers that the file of a version has holes, or is gone, which is not durable yet.
  void note_holes(uint32_t version);
  // Makes durable what was noted before the call; `sync` is given the files.
  void sync_holes(const std::function<void(Object& file)>& sync);
  // Removes the file that was made ahead, at a clean close.
  void remove_prepared();
  void sync_written();

  // Own copies of ancestors' files, which take their places at the end. Until then the volume reads
  // its ancestors' files, and nobody else uses what is in its own folder under their numbers.
  Object& copy_of(uint32_t version);
  // Removes what copies there are, of an earlier life too.
  void forget_copies();
  void sync_copies();
  // Returns the ancestors' files, which requests may still use.
  std::vector<std::shared_ptr<DataFile>> end_copies();

 private:
  DataFile& file_of_version(uint32_t version) {
    if (DataFile* file = table_.find(version)) [[likely]]
      return *file;
    return *open(version, Access::kRead);
  }
  std::shared_ptr<DataFile> open(uint32_t version, Access access);
  // Nothing when it is the volume's own.
  const Ancestor* ancestor_of(uint32_t version) const REQUIRES_SHARED(mutex_);
  std::string file_of(uint32_t version) const REQUIRES_SHARED(mutex_);
  std::vector<uint32_t> own_versions();
  std::string own_name(uint32_t version) const { return name_of(folder_, version); }

  Backend& backend_;
  const Uuid volume_;
  const std::string folder_;
  CellCache* const cells_;  // or none
  SharedMutex mutex_;
  std::unordered_map<uint32_t, std::shared_ptr<DataFile>> files_ GUARDED_BY(mutex_);
  std::vector<Ancestor> ancestors_ GUARDED_BY(mutex_);
  PointerTable<DataFile> table_;  // of files_; read without the mutex
  Mutex written_mutex_;
  std::vector<std::shared_ptr<DataFile>> written_ GUARDED_BY(written_mutex_);
  uint32_t prepared_ GUARDED_BY(written_mutex_) = 0;
  std::set<uint32_t> with_holes_ GUARDED_BY(written_mutex_);  // that are not durable
  std::map<uint32_t, std::unique_ptr<Object>> copies_;        // one thread uses these
};

}  // namespace tplstore
