// A backend in memory that records every change, for tests of crash consistency.
//
// Each change and each sync is an event of the backend's trace; crash(n, kind, seed) gives the
// state that a machine is in after a crash right behind the first n events, as a backend of its
// own whose trace starts empty, so that a test can recover on it, go on, and crash it again. What
// may be lost is exactly what backend/backend.h does not promise; memory/memory_state.h says how
// that is kept.
//
//   for (CrashWalker walker(backend);; walker.advance()) {
//     auto after = walker.crash(MemoryBackend::Crash::kRandom, seed);
//     … recover on *after and compare …
//     if (walker.is_at_end()) break;
//   }
//
// It can also be full, fail syncs and reads, and have its objects damaged.
//
// Thread safety: all methods of one backend. A backend and those that came from it by crash() or
// clone() share memory and must not be used at the same time by different threads. Objects, and
// CrashWalkers, must not outlive their backend; locks may.
// Errors: as backend/backend.h, the same as DirBackend's.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "memory/memory_state.h"

namespace tplstore {

class MemoryBackend final : public Backend {
 public:
  enum class Crash {
    kKill,          // the process died: nothing is lost, but what was unsynced still is
    kLoseUnsynced,  // the power failed: just what was durable is left
    kRandom,        // the power failed: and some of the rest, sector by sector, name by name
  };

  MemoryBackend();
  ~MemoryBackend() override;

  std::unique_ptr<Object> open(const std::string& name, Access access, Purpose purpose) override;
  std::unique_ptr<Object> create(const std::string& name, uint64_t size_bytes,
                                 Purpose purpose) override;
  bool put_new(const std::string& name, Bytes content) override;
  bool put_claim(const std::string& name, Bytes content) override;
  std::optional<ByteVector> get(const std::string& name, uint64_t max_bytes) override;
  std::vector<std::string> list(const std::string& folder) override;
  bool remove(const std::string& name) override;
  void remove_folder(const std::string& folder) override;
  void sync_folder(const std::string& folder) override;
  using Backend::try_lock;
  std::unique_ptr<HeldLock> try_lock(const std::string& name, LockMode mode,
                                     uint64_t slot) override;
  bool is_locked(const std::string& name) override;
  uint32_t write_alignment_bytes() const override { return 1; }
  std::string describe() const override { return "memory"; }
  StorageKind kind() const override { return kind_; }
  std::optional<StorageSpace> space() override;  // nothing while it has no capacity

  // --- the trace
  size_t event_count() const;
  std::string describe_event(size_t index) const;
  // Off: keeps the current state only, all of it durable, and the trace is empty. Turning it on
  // starts a trace at the current state. On at first.
  void set_recording(bool recording);
  // Consecutive calls with the same or a growing `event_count` are cheap.
  std::unique_ptr<MemoryBackend> crash(size_t event_count, Crash kind, uint64_t seed) const;
  // The current state with its unsynced changes and no trace, without faults and locks.
  std::unique_ptr<MemoryBackend> clone() const;

  // --- faults
  // Of all named objects together, counted in pages of 4 KiB; what needs more throws ENOSPC. It
  // stays with what crash() and clone() return.
  void set_capacity_bytes(uint64_t capacity_bytes);
  uint64_t allocated_bytes() const;
  // The next sync of an object whose name starts so throws, or the one after `skipped` others; with
  // code 0 it does not after all. From then on write() and sync() of its Object throw EIO, and so
  // does the next sync of others that are open. As with Linux, the writes that were to become
  // durable go on being seen, until drop_cached() or a power cut, and syncs of Objects that are
  // opened later succeed without them; while nothing is recorded they are not lost.
  void fail_next_sync(const std::string& name_prefix, int code, uint64_t skipped = 0);
  // Every read of objects whose names start so throws, until called with 0.
  void fail_reads(const std::string& name_prefix, int code);

  // It is storage that hosts share; what crash() and clone() return is not.
  void set_kind(const StorageKind& kind) { kind_ = kind; }

  // --- damage
  ByteVector content(const std::string& name) const;  // ENOENT
  // Replaces the content, or makes the object; durable at once, and seen by open Objects.
  void set_content(const std::string& name, Bytes content);

 private:
  friend class CrashWalker;
  friend class MemoryObject;
  struct LockTable;

  static std::unique_ptr<MemoryBackend> crashed(const MemoryState& state, Crash kind, uint64_t seed,
                                                uint64_t capacity_bytes);
  MemoryBackend(MemoryState state, uint64_t capacity_bytes);

  void record(MemoryEvent event);
  uint64_t must_find(const std::string& name) const;
  void check_creatable(const std::string& name) const;
  void check_space(uint64_t more_bytes, const std::string& name) const;
  void check_readable(const std::string& name) const;
  int take_sync_fault(const std::string& name);
  void object_closed(uint64_t object);
  uint64_t object_opened(uint64_t object);

  mutable std::mutex mutex_;
  MemoryState first_;  // where the trace starts
  MemoryState now_;
  std::vector<MemoryEventPtr> events_;
  bool is_recording_ = true;

  // The last place that crash() was asked for.
  mutable MemoryState replayed_;
  mutable size_t replayed_count_ = 0;

  StorageKind kind_{"memory"};
  uint64_t capacity_bytes_ = UINT64_MAX;
  struct SyncFault {
    std::string name_prefix;
    int code;
    uint64_t skipped;
  };
  std::vector<SyncFault> sync_faults_;
  std::map<uint64_t, uint64_t> failed_syncs_;  // per object
  std::map<std::string, int> read_faults_;
  std::map<uint64_t, uint64_t> open_counts_;  // Objects per object
  std::shared_ptr<LockTable> locks_;
};

// Walks over a trace, from before its first event, at the cost of playing each event once.
class CrashWalker {
 public:
  explicit CrashWalker(const MemoryBackend& backend);

  size_t event_count() const { return event_count_; }  // played so far
  bool is_at_end() const;
  void advance();  // not at the end
  void advance_to(size_t event_count);
  // The state after a crash here; see MemoryBackend::crash().
  std::unique_ptr<MemoryBackend> crash(MemoryBackend::Crash kind, uint64_t seed) const;

 private:
  const MemoryBackend& backend_;
  MemoryState state_;
  size_t event_count_ = 0;
};

}  // namespace tplstore
