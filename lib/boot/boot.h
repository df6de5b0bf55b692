// The boot cache of a store: memory (boot/cell_memory.h), and what it learns from the reads of VMs
// that boot.
//
// The writer of a volume has a follower for each of its connections, whose reads open windows
// (boot/boot_windows.h); while one is open, what is read is recorded, taken into the memory, and
// read ahead as the profile has it (boot/read_ahead.h). When it has ended, what was recorded is
// merged into the profile of who that came from (boot/learning.h); and a pack is made of a profile
// that has become steady and takes long to read.
//
// Threads: one ends windows and keeps the memory, one learns, one reads ahead; reads of guests wait
// for none of them. Without start() there are none, and tend() does what is due.
//
// Thread safety: all methods, but start() and stop(), which come once each. Followers and disks are
// gone before it is. Errors: those of the store's backend, from what is asked for by name.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <thread>

#include "boot/boot_windows.h"
#include "boot/read_ahead.h"
#include "boot/stored_boots.h"

namespace tplstore {

struct BootStats {
  CellMemoryStats memory;
  uint64_t windows_open = 0;
};

class Boot {
 public:
  // Reads nothing. The backend is the store's; `secret` is that of its hashes.
  Boot(BootOptions options, Backend& store, const HashSecret& secret);
  ~Boot() { stop(); }

  void start();
  void stop();

  CellMemory& memory() { return memory_; }

  std::unique_ptr<ReadFollower> follow(std::shared_ptr<BootDisk> disk) {
    return windows_.follow(std::move(disk));
  }
  std::optional<BootWindow> done(const Uuid& volume) { return windows_.done(volume); }
  BootWarm warm(BootDisk& disk, const std::function<void(uint64_t done, uint64_t bytes)>& progress,
                const std::function<bool()>& interrupted) {
    return read_ahead_.warm(disk, progress, interrupted);
  }
  // Of a volume or a template.
  BootStatus show(BootDisk& disk);
  // Drops profile, pack and what is in memory of it, but what open windows have.
  void forget(BootDisk& disk);
  BootStats stats() { return {memory_.stats(), windows_.count_open()}; }

  // What its threads have to do, by the caller; where there are none.
  void tend();

 private:
  bool upkeep();
  void learn_all();
  void learn(FollowedBoot& boot);
  void drop_cached(BootDisk* disk, std::span<const ProfileRun> boot);
  template <typename Work>
  void run_thread(std::thread& thread, Alarm& alarm, Work work);

  const BootOptions options_;
  Backend& store_;
  const HashSecret secret_;
  BootAlarms alarms_;
  CellMemory memory_;
  BootWindows windows_;
  ReadAhead read_ahead_;
  std::thread upkeep_thread_, learn_thread_, read_thread_;
};

}  // namespace tplstore
