// What is open of a volume: what its requests (volume/volume.h), its versions, its forks and the
// giving back of space share. Volume puts it together and takes it apart.
//
// Opened for writing it has the writer lock, and its map is the same to the end. Opened for
// reading, only frozen versions are served, and no lock is taken but a shared one that keeps the
// volume from being removed; the map is exchanged when the owner has compacted its log away.
//
// Thread safety: all, once it is open. What says "quiesced" changes only while requests are.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "backend/backend.h"
#include "base/grace_period.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/volume_types.h"
#include "lock/writer_lock.h"
#include "map/volume_map.h"
#include "template/template_image.h"
#include "volume/data_files.h"
#include "volume/range_locks.h"

namespace tplstore {

class RequestTimes;

// What a volume is given by the store that it belongs to.
struct VolumeEnvironment {
  Backend& backend;
  // Opens a template, or shares one that is open.
  std::function<std::shared_ptr<TemplateImage>(const std::string& name)> open_template;
  Log log;
  // Called when there is something to maintain.
  std::function<void()> wake;
  // Ends what takes long.
  std::stop_token stop{};
  // What is read of templates and frozen versions may be in there; or none.
  CellCache* cells = nullptr;
  // Where records of the map are kept that no commit covers; nothing when they need not be.
  JournalPlace* journals = nullptr;
  // Where it is counted how long requests take; or none.
  RequestTimes* times = nullptr;
};

std::string volume_folder(const Uuid& volume);

struct OpenVolume {
  OpenVolume(const VolumeEnvironment& environment_of, const Uuid& volume, const std::string& name);

  // EIO when the template is another than the volume was made from.
  void open_template(const VolumeHeader& header);
  // The map, and from it which volumes' files the versions' blocks are in.
  void open_map(Access access);
  void use_current(DataFile& file) noexcept;

  // The owner's, which is never exchanged.
  VolumeMap& map() const { return *map_in_use_.load(std::memory_order_relaxed); }
  // Calls `body` with the map for reading, from the beginning if a reader has to read it anew
  // meanwhile. What is found in it stays allocated until `body` returns.
  template <typename Body>
  auto with_map(Body body);

  // The lock of a version that readers share; nothing when others have it in another way.
  std::unique_ptr<HeldLock> try_lock(uint32_t version, LockMode mode) {
    return backend.try_lock(readers_name(folder), mode, version);
  }
  // Whether a version that a lookup has found is frozen: what is in its cells never changes.
  bool is_frozen(uint32_t version) const {
    const uint32_t last = current.load(std::memory_order_acquire);
    return version < last || last == 0;  // 0: it is open for reading
  }
  // Records current's size in the header, where it is another.
  void record_size();
  // Does `work`, or the log says what failed, and why; whether it was done.
  template <typename Work>
  bool attempt(const char* failure, Work work) noexcept;

  const VolumeEnvironment environment;
  Backend& backend;
  const Uuid uuid;
  const std::string folder;
  const std::string name;
  const std::string object;  // "volume NAME", for messages
  std::shared_ptr<TemplateImage> template_image;
  uint64_t template_blocks = 0;
  std::unique_ptr<WriterLock> lock;   // for writing
  std::unique_ptr<HeldLock> readers;  // for reading
  DataFiles files;
  const uint32_t write_alignment;  // the backend's, in bytes

  Quiesce quiesce;
  RangeLocks range_locks;
  GracePeriod cell_users;  // of what has looked up cells, and may read them

  // Quiesced.
  std::atomic<uint32_t> current{0};
  std::atomic<DataFile*> current_file{nullptr};
  std::atomic<uint64_t> size_bytes{0};
  // Current's file may have cells that nothing maps.
  std::atomic<bool> is_unswept{false};

 private:
  bool reload_map(const VolumeMap* old);
  void log_failure(const char* failure, const char* why) noexcept;

  Mutex map_exchange_mutex_;
  std::unique_ptr<VolumeMap> map_ GUARDED_BY(map_exchange_mutex_);
  std::atomic<VolumeMap*> map_in_use_{nullptr};  // that; who reads it is among cell_users
};

template <typename Body>
auto OpenVolume::with_map(Body body) {
  for (int tries = 0;; ++tries) {
    VolumeMap* map = nullptr;
    try {
      const GracePeriod::Request request(cell_users);
      map = map_in_use_.load();
      return body(*map);
    } catch (const Error& error) {
      if (error.code() != ENOENT || tries == 3 || !reload_map(map)) throw;
    }
  }
}

template <typename Work>
bool OpenVolume::attempt(const char* failure, Work work) noexcept {
  try {
    work();
    return true;
  } catch (const std::exception& error) {
    log_failure(failure, error.what());
    return false;
  }
}

}  // namespace tplstore
