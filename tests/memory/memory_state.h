// What a MemoryBackend holds at one moment: what can be seen, what is durable, and every change in
// between. It is driven by events only, so playing a trace again gives the same state.
//
// Durable is what backend/backend.h promises and nothing more. Of an object: its content at its
// last sync, then the list of unsynced changes. A failed sync takes the writes off that list, as
// Linux does with pages that it could not write: they can be seen until what is cached is dropped,
// and no later sync makes them durable. Sizes and holes are the file system's own matter and stay
// on it. Of a name: the history of what it stood for, the first entry being durable and the last
// one current. A folder is a name too; syncing a folder makes it and all above it durable, and with
// the durable removal of a folder all goes that was in it.
//
// Copies are cheap: objects are shared until one copy changes them.
//
// Thread safety: none, and states copied from each other count as one object (they share pages).
// Errors: none; what an event refers to must be there (ensure).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "memory/memory_image.h"

namespace tplstore {

// One change of a MemoryBackend, or one sync.
struct MemoryEvent {
  enum class Kind {
    kCreate,        // name, object, length = size
    kWrite,         // name, object, offset, data
    kPunch,         // name, object, offset, length
    kGrow,          // name, object, length = size
    kSync,          // name, object
    kFailSync,      // name, object
    kDropCached,    // name, object
    kPutNew,        // name, object, data
    kSetContent,    // name, object (one more than all before, if the name is new), data
    kRemove,        // name
    kRemoveFolder,  // name
    kSyncFolder,    // name
  };

  Kind kind;
  std::string name;
  uint64_t object = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  ByteVector data = {};

  std::string describe() const;  // "write volumes/…/map.1: 512 bytes at 4096"
};
using MemoryEventPtr = std::shared_ptr<const MemoryEvent>;

class MemoryState {
 public:
  // Without history, every change is durable at once and costs no memory.
  void set_keeps_history(bool keeps_history);

  void apply(const MemoryEventPtr& event);

  // What can be seen now. Objects have numbers from 1; 0 is none.
  uint64_t find(const std::string& name) const;
  bool has_folder(const std::string& folder) const;  // the empty name is always there
  std::vector<std::string> list(const std::string& folder) const;
  const MemoryImage& image(uint64_t object) const;
  bool has_lost(uint64_t object) const;  // whether dropping what is cached would show that
  uint64_t next_object() const { return last_object_ + 1; }
  uint64_t allocated_bytes() const;  // of all objects that have a name

  // Frees what no name stands for and `is_free` agrees to. Without history only: a crash may bring
  // a removed name back.
  void forget_unnamed(const std::function<bool(uint64_t object)>& is_free);
  void forget_if_unnamed(uint64_t object);

  // The states after a crash now; see MemoryBackend::Crash. After a kill it is the same state.
  MemoryState after_losing_unsynced() const;
  MemoryState after_random_crash(uint64_t seed) const;

 private:
  struct Content {
    MemoryImage current;
    MemoryImage durable;
    std::vector<MemoryEventPtr> unsynced;
    bool has_lost = false;  // shows writes that are neither durable nor unsynced
  };
  struct Step {
    uint64_t event;   // the number of the event that made it
    uint64_t object;  // or 0; for folders 1 or 0
  };
  using History = std::vector<Step>;  // never empty
  using Names = std::map<std::string, History, std::less<>>;

  static uint64_t current_of(const Names& names, std::string_view name);
  static MemoryImage random_content(const Content& content, uint64_t& random);
  void set(Names& names, const std::string& name, uint64_t object);
  void make_folders_of(const std::string& name);
  void settle(Names& names, const std::string& name, uint64_t up_to_event);
  void settle_beneath(const std::string& folder, uint64_t up_to_event);
  void settle_folder_name(const std::string& folder);
  void settle_folders_of(const std::string& name);
  void sync_folder(const std::string& folder);
  void remove_folder(const std::string& folder);
  void change(const MemoryEventPtr& event);
  void sync(Content& content) const;
  static void fail_sync(Content& content, const MemoryEvent& event);
  static void drop_cached(Content& content);
  Content& writable(uint64_t object);
  void keep(MemoryState& into, const std::string& name, uint64_t object, MemoryImage image) const;

  bool keeps_history_ = true;
  uint64_t event_ = 0;  // number of the event being applied
  uint64_t last_object_ = 0;
  Names names_;
  Names folders_;
  std::map<uint64_t, std::shared_ptr<Content>> objects_;
};

}  // namespace tplstore
