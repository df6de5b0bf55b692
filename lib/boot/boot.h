// The boot cache of a store: memory (boot/cell_memory.h), and what it learns from the reads of VMs
// that boot.
//
// The writer of a volume has a follower for each of its connections. A read of the first block, or
// two of what the profile begins with, opens a window (boot/window.h); while it is open, what is
// read is recorded, taken into the memory, and read ahead as the profile has it (boot/prefetch.h).
// When it has ended, what was recorded is merged into the profile of the template, or of the volume
// when at least a twentieth did not come from the template; and a pack is made of a template's
// profile that has become steady and takes long to read.
//
// Threads: one ends windows and keeps the memory, one learns, one reads ahead; reads of guests wait
// for none of them. Without start() there are none, and tend() does what is due.
//
// Thread safety: all methods, but start() and stop(), which come once each. Followers and disks are
// gone before it is. Errors: those of the store's backend, from what is asked for by name.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "boot/boot_disk.h"
#include "boot/cell_memory.h"
#include "boot/window.h"

namespace tplstore {

struct BootOptions {
  uint64_t cap_bytes = uint64_t{256} << 20;  // more than 0
  bool huge_pages = true;
  std::chrono::milliseconds quiet = std::chrono::seconds(15);
  std::chrono::milliseconds time = std::chrono::seconds(300);
  uint64_t bytes = uint64_t{2} << 30;
  bool prefetch = true;
  bool packs = true;
  std::function<void(const std::string&)> log = [](const std::string&) {};
  // Milliseconds of a clock that only rises.
  std::function<int64_t()> clock_ms = steady_ms;

  static int64_t steady_ms();
};

// What became of a window, or how it stands.
struct BootWindow {
  std::string volume;
  Uuid volume_uuid;
  std::optional<Uuid> template_uuid;
  int64_t opened_ns = 0;            // since 1970
  std::optional<WindowEnd> reason;  // nothing: it is open
  int64_t ended_ns = 0;
  uint64_t blocks = 0;  // that were touched, of immutable data
  uint64_t streamed_bytes = 0;
  uint64_t read_bytes = 0;  // with those
  WindowUse use;
  int64_t duration_ms = 0;

  uint64_t bytes() const { return blocks * kBlockBytes; }
  // "vm1: boot ended (quiet): 10188 blocks, 39.8 MiB, 97 % found in memory, 31.4 s"
  std::string line() const;
};

struct BootStatus {
  std::string name;
  bool is_template = false;
  struct ProfileStatus {
    uint64_t generation = 0;
    uint32_t boots = 0;
    uint64_t blocks = 0;
    int64_t created_ns = 0;
    int64_t updated_ns = 0;
    uint64_t own_blocks = 0;  // that did not come from the template
  };
  std::optional<ProfileStatus> profile;
  // kDamaged: passed over. Volumes have none.
  enum class PackState { kNone, kReady, kDamaged };
  PackState pack = PackState::kNone;
  uint64_t pack_bytes = 0;
  uint64_t cached_bytes = 0;        // of what is in the profile
  std::vector<BootWindow> windows;  // the last 16, the newest last; of a template: its volumes'
};
const char* name_of(BootStatus::PackState state);  // "none", "ready", "damaged"

struct BootWarm {
  uint64_t wanted_bytes = 0;
  uint64_t cached_bytes = 0;  // of these, what is in memory now
};

struct BootStats {
  CellMemoryStats memory;
  uint64_t windows_open = 0;
};

class Boot {
 public:
  // Reads nothing. The backend is the store's; `secret` is that of its hashes.
  Boot(BootOptions options, Backend& store, const HashSecret& secret);
  ~Boot();

  void start();
  void stop();

  CellMemory& memory();

  // For each connection of the writer of a volume. The last one that goes ends the window; what it
  // has of the disk is let go of soon after.
  std::unique_ptr<ReadFollower> follow(std::shared_ptr<BootDisk> disk);

  // Of a volume or a template.
  BootStatus show(BootDisk& disk);
  // Ends the window of a volume; nothing when none is open.
  std::optional<BootWindow> done(const Uuid& volume);
  // Reads what the profile has, as far as there is room. ENOENT without a profile; EINTR when
  // `interrupted` says so.
  BootWarm warm(BootDisk& disk, const std::function<void(uint64_t done, uint64_t bytes)>& progress,
                const std::function<bool()>& interrupted);
  // Drops profile, pack and what is in memory of it, but what open windows have.
  void forget(BootDisk& disk);
  BootStats stats();

  // What its threads have to do, by the caller; where there are none.
  void tend();

  // --- what others do to the store, with a boot cache or without
  static BootStatus show_stored(Backend& store, BootDisk& disk);
  static void forget_stored(Backend& store, BootDisk& disk);
  static void remove_of_template(Backend& store, const Uuid& template_uuid);
  // What is of no template that is there; how many objects. Of a volume all goes with its folder.
  static uint64_t remove_orphans(Backend& store, const std::set<Uuid>& templates);
  // A fork starts with its parent's profile, if that has one.
  static void copy_for_fork(Backend& store, const Uuid& parent, const Uuid& child);

 private:
  class Service;
  const std::unique_ptr<Service> service_;
};

}  // namespace tplstore
