// The data files of a volume: one sparse object "data.<version>" for each version that wrote
// something, with block b of the disk at offset b × 4096.
//
// Files that may have unsynced writes (current's, and those frozen since) are known here, so that
// sync_written() makes all that was written durable. Frozen files are opened when first read and
// stay open; the backend bounds descriptors. A DataFile lives as long as this object does.
//
// Thread safety: all methods; begin() and advance() while no write is in flight.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend.h"

namespace tplstore {

struct DataFile {
  uint32_t version;
  std::unique_ptr<Object> object;
  std::atomic<bool> is_dirty{false};  // written since the last sync began

  void write(uint64_t offset, Bytes from) {
    object->write(offset, from);
    note_write();
  }
  void note_write() { is_dirty.store(true, std::memory_order_release); }
};

class DataFiles {
 public:
  DataFiles(Backend& backend, std::string folder) : backend_(backend), folder_(std::move(folder)) {}

  static std::string name_of(const std::string& folder, uint32_t version);
  // Makes the file of a version exclusively and stretches it to hold a disk of this size.
  static void create(Backend& backend, const std::string& folder, uint32_t version,
                     uint64_t disk_bytes);

  // The file of a frozen version or of current, open at least for reading; EIO when it is missing.
  DataFile& get(uint32_t version);

  // For the owner of the volume. Removes files above `current`, which a crash left behind.
  void remove_above(uint32_t current);
  // Opens current's file for writing.
  DataFile& begin(uint32_t current);
  // Syncs the file of a version, if there is one, whatever is known of its writes.
  void sync_existing(uint32_t version);
  // Makes the file of the next version ahead of time, if it is not there yet; durably.
  void prepare(uint32_t version, uint64_t disk_bytes);
  // The prepared file becomes the one that is written.
  DataFile& advance(uint32_t version);
  // Removes the file of a frozen version that no block is in and that is synced.
  void remove(uint32_t version);
  // Removes the file that was made ahead, at a clean close.
  void remove_prepared();
  void stretch(uint32_t version, uint64_t disk_bytes);
  void sync_written();

 private:
  DataFile& open(uint32_t version, Access access);

  Backend& backend_;
  const std::string folder_;
  std::shared_mutex mutex_;  // guards files_
  std::unordered_map<uint32_t, std::unique_ptr<DataFile>> files_;
  std::mutex written_mutex_;  // guards all below
  std::vector<DataFile*> written_;
  uint32_t prepared_ = 0;
};

}  // namespace tplstore
