// Where the segments of a store are: in the store itself, or apart from it, in a directory of their
// own, e.g. on a distributed file system.
//
// Objects "origin.N" of the store say where; the highest N counts. Each has one line: a random id
// of the place, and the location; an empty one is the store itself, and so it is where there is no
// such object. The directory has an object "tplstore-origin" with one line, the store's uuid and
// that id, so that an empty mount point, another store's segments and a place that they have left
// are told from it. Then whatever needs a segment fails with an Error that says so, until it is
// found again; the rest of the store goes on.
//
// Thread safety: all. Errors: EIO where the segments should be somewhere and cannot be found there.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/mutex.h"

namespace tplstore {

// What a location leads to (backend/open_backend.h).
using OpenLocation = std::function<std::unique_ptr<Backend>(const std::string& location)>;

// What templates are made of: manifests and journals, and the segments.
struct TemplateStorage {
  TemplateStorage(Backend& both) : store(both), segments(both) {}
  TemplateStorage(Backend& store_of, Backend& segments_of)
      : store(store_of), segments(segments_of) {}

  Backend& store;
  Backend& segments;
};

struct OriginPlace {
  uint64_t number = 0;
  Uuid id = {};
  std::string location = {};  // empty: the store itself
};
// All that the store names, in rising order, the store itself before them: the last one counts.
std::vector<OriginPlace> list_origin_places(Backend& store);
void put_origin_place(Backend& store, const OriginPlace& place);

// Makes a directory the origin, if nobody has it: EEXIST when it is another store's, or has
// segments already. One that this store has had, or was to have, it takes.
void claim_origin(Backend& directory, const Uuid& store, const Uuid& id);
// Whether it is that place of the store's.
bool is_origin(Backend& directory, const Uuid& store, const Uuid& id);
inline constexpr const char* kOriginObject = "tplstore-origin";

// The segments of a store, wherever they are now: a server that is running when they are moved
// finds them again.
class Origin final : public Backend {
 public:
  // The backends outlive what is opened of them; `open_location` is called as long as this lives.
  Origin(Backend& store, OpenLocation open_location);
  ~Origin() override;

  // Throws when the segments cannot be found.
  void check() { present(); }
  // The location, or nothing when they are in the store.
  std::string location();

  std::unique_ptr<Object> open(const std::string& name, Access access, Purpose purpose) override;
  std::unique_ptr<Object> create(const std::string& name, uint64_t size_bytes,
                                 Purpose purpose) override;
  bool put_new(const std::string& name, Bytes content) override;
  std::optional<ByteVector> get(const std::string& name, uint64_t max_bytes) override;
  std::vector<std::string> list(const std::string& folder) override;
  bool remove(const std::string& name) override;
  void remove_folder(const std::string& folder) override;
  void sync_folder(const std::string& folder) override;
  using Backend::try_lock;
  std::unique_ptr<HeldLock> try_lock(const std::string& name, LockMode mode,
                                     uint64_t slot) override;
  bool is_locked(const std::string& name) override;
  uint32_t write_alignment_bytes() const override;
  std::string describe() const override;
  StorageKind kind() const override;
  std::optional<StorageSpace> space() override { return present().space(); }

 private:
  struct Place {
    uint64_t number;
    std::unique_ptr<Backend> apart;  // none when it is the store
  };
  // Where they are now: looks. Whoever has gc.lock finds the same until it lets go.
  Backend& present();

  Backend& store_;
  const OpenLocation open_location_;
  std::atomic<Backend*> known_{nullptr};  // where they were when somebody last looked
  Mutex mutex_;
  std::list<Place> places_ GUARDED_BY(mutex_);  // objects of former ones may be open
};

}  // namespace tplstore
