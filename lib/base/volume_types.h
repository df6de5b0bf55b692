// What the store tells about volumes and versions. Plain data.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace tplstore {

// Who is at the other end of a connection.
struct Peer {
  std::string address;  // for messages: "unix socket, pid 4711", "127.0.0.1:50122", "tplstore tool"
  int64_t pid = 0;      // 0 when unknown (TCP, or outside our pid namespace)
  uint64_t start_time = 0;  // of that process, in clock ticks since boot; 0 when unknown
  std::string token{};      // the name that it gives itself; may be empty
  bool is_multi = false;    // it may have several connections at once
  bool is_vm = true;        // or a program of ours
};

// The writer of a volume as its header has it: for people, and for who comes next.
struct WriterInfo {
  std::string host_name;
  Uuid host_id;
  Uuid boot_id;
  uint32_t server_pid = 0;
  uint64_t server_start_time = 0;
  std::string peer;
  uint64_t epoch = 0;
  int64_t since_ns = 0;
  std::string token;     // may be empty
  int64_t peer_pid = 0;  // 0 when unknown
  uint64_t peer_start_time = 0;
};

// What is known of who may write a volume.
struct LockInfo {
  // kCrashed: the server of the writer has ended and not freed it. kForeign: likewise, on a host
  // that nobody here can look at.
  enum class State { kFree, kHeld, kCrashed, kHandOver, kForeign };
  struct Loser {
    std::string peer;
    uint64_t epoch = 0;     // in which it saw the disk; 0 when it was to get it and did not
    bool has_lost = false;  // what was acknowledged to it went with its server
  };
  struct HandOver {
    std::string to;
    bool has_standby = false;
    int64_t until_ns = 0;
  };

  std::string volume;
  State state = State::kFree;
  uint64_t epoch = 0;
  uint64_t size_bytes = 0;
  std::optional<WriterInfo> writer;
  uint32_t connections = 0;  // of the writer, where that can be told
  bool has_written = false;  // the writer, as far as anybody knows
  std::vector<Loser> losers;
  std::optional<HandOver> hand_over;
};

// A version of any volume, wherever its data may have been carried to.
struct VersionIdentity {
  Uuid volume;
  uint32_t number = 0;
  bool is_nil() const { return volume.is_nil() && number == 0; }
  bool operator==(const VersionIdentity&) const = default;
};

// A version that is to be made of what current is.
struct NewVersion {
  std::string name;  // may be empty
  std::string note;  // likewise
  VersionIdentity origin;
  int64_t created_ns = 0;  // of one that was made elsewhere: when; 0: now
};

// Stands for what a volume was before its first version: its template, or zeroes.
inline constexpr uint32_t kBeforeFirstVersion = UINT32_MAX;

struct VersionInfo {
  uint32_t number = 0;
  std::string name;        // empty when it has none
  std::string note;        // likewise
  uint32_t parent = 0;     // the version it started from; 0 for the first
  int64_t created_ns = 0;  // when it was frozen; for the current one, when it began
  uint64_t size_bytes = 0;
  uint64_t own_bytes = 0;  // what removing it would give back; of current, what it alone has
  bool is_hidden = false;  // removed, but forks or several versions that start from it need it
  bool is_current = false;
  std::vector<uint32_t> children;  // versions that start from it
  std::vector<std::string> forks;  // volumes that do; the uuids of those that have lost their name
  VersionIdentity identity;        // the same for a version that was carried to another store
};

// A run of a disk in which two versions may differ.
struct ChangedRange {
  uint64_t offset;
  uint64_t length;
  bool is_zero;  // in the later one
};

struct VolumeInfo {
  std::string name;
  Uuid uuid;
  uint64_t size_bytes = 0;
  std::string template_name;  // empty when it has none
  uint32_t current_version = 0;
  bool is_attached = false;          // somebody has it open for writing
  std::optional<WriterInfo> writer;  // who that is, as far as the header tells
  uint64_t unique_bytes = 0;         // what its files occupy
  uint64_t shared_bytes = 0;         // what current reads of volumes it was forked from
  std::string parent;  // "vm1@7", where it was forked from; empty when it was not, or is flattened
  std::vector<VersionInfo> versions;  // oldest first; filled by Store::show_volume only
};

// A volume that was removed, and is kept for a while.
struct RemovedVolume {
  std::string name;  // that it had
  Uuid uuid;
  int64_t removed_ns = 0;
  int64_t until_ns = 0;
  uint64_t size_bytes = 0;    // filled by Store::list_removed only; 0 where its header is damaged
  uint64_t unique_bytes = 0;  // likewise
};

// What the store's objects occupy.
struct StoreSpace {
  uint64_t volume_bytes = 0;
  uint64_t template_bytes = 0;
  uint64_t other_bytes = 0;
};

// What is counted of an open volume since it was opened.
enum class Counter : uint8_t {
  kReads,
  kReadBytes,
  kWrites,
  kWriteBytes,
  kTrims,
  kTrimBytes,
  kZeroes,
  kZeroBytes,
  kFlushes,
  kErrors,
  kFirstWrites,    // blocks written for the first time in their version
  kTemplateReads,  // pieces read from template segments
  kTemplateReadBytes,
  kDataFileReads,  // pieces read from data files
  kDataFileReadBytes,
  kExtents,
  kReadNs,  // how long these took, all together
  kWriteNs,
  kTrimNs,
  kZeroNs,
  kFlushNs,
};
inline constexpr size_t kCounterCount = static_cast<size_t>(Counter::kFlushNs) + 1;

// Requests by how long they took: how many took up to each bound, and longer than the one before;
// the last ones took longer than all bounds.
inline constexpr std::array<uint64_t, 19> kDurationBoundsNs = {
    10'000,      25'000,       50'000,       100'000,      250'000,       500'000,     1'000'000,
    2'500'000,   5'000'000,    10'000'000,   25'000'000,   50'000'000,    100'000'000, 250'000'000,
    500'000'000, 1000'000'000, 2500'000'000, 5000'000'000, 10'000'000'000};
struct DurationHistogram {
  std::array<uint64_t, kDurationBoundsNs.size() + 1> counts{};
  uint64_t sum_ns = 0;
};
enum class RequestKind : uint8_t { kRead, kWrite, kTrim, kZero, kFlush };
inline constexpr size_t kRequestKindCount = 5;

// What a volume takes, by the books of its map.
struct VolumeUsage {
  uint32_t current_version = 0;
  uint64_t unique_bytes = 0;    // that its versions have in files of its own
  uint64_t shared_bytes = 0;    // that current reads of volumes it was forked from
  uint64_t occupied_bytes = 0;  // the first, and the map log
};

struct MapStats {
  uint64_t commits = 0;  // group commits, at least one flush or FUA each
  uint64_t checkpoints = 0;
  uint64_t compactions = 0;
  uint64_t loads = 0;              // nodes read from the log
  uint64_t evictions = 0;          // passes of the evictor
  uint64_t log_bytes = 0;          // the map log up to its tail
  uint64_t log_garbage_bytes = 0;  // of which a compaction would drop
  uint64_t log_generation = 0;
  uint64_t memory_bytes = 0;  // of current's loaded nodes
};

struct VolumeStats {
  std::string name;
  bool is_open = true;  // else nothing is counted
  uint64_t size_bytes = 0;
  uint32_t connections = 0;
  std::optional<VolumeUsage> usage;  // or nobody has noted it
  bool is_usage_old = false;         // of an earlier close: a server that had it since has died
  std::array<uint64_t, kCounterCount> counters{};
  MapStats map;

  uint64_t operator[](Counter counter) const { return counters[static_cast<size_t>(counter)]; }
};

// What this process does with the copies of segments that its host has, in all directories.
// What is in directories of the tier, and what they have done since the process began.
struct TierCounters {
  uint64_t segments = 0;
  uint64_t bytes = 0;
  uint64_t bytes_out_of_place = 0;
  uint64_t reads = 0;
  uint64_t read_bytes = 0;
  uint64_t fills = 0;
  uint64_t fill_bytes = 0;
  uint64_t errors = 0;
  uint64_t damaged = 0;  // copies that were found to be

  TierCounters& operator+=(const TierCounters& other) {
    segments += other.segments;
    bytes += other.bytes;
    bytes_out_of_place += other.bytes_out_of_place;
    reads += other.reads;
    read_bytes += other.read_bytes;
    fills += other.fills;
    fill_bytes += other.fill_bytes;
    errors += other.errors;
    damaged += other.damaged;
    return *this;
  }
};

struct TierStats : TierCounters {
  bool is_used = false;
  uint64_t origin_reads = 0;  // since no copy could be read
  uint64_t origin_read_bytes = 0;
};

// Of the boot cache; cells are blocks of 4 KiB.
struct BootCacheStats {
  bool is_used = false;
  uint64_t cap_bytes = 0;
  uint64_t used_bytes = 0;
  uint64_t peak_bytes = 0;
  uint64_t slots = 0;  // cells that are in memory
  uint64_t hits = 0;   // cells that were read from memory
  uint64_t misses = 0;
  uint64_t fills = 0;  // cells that were taken in
  uint64_t fill_bytes = 0;
  uint64_t waits = 0;  // reads that waited for another one's
  uint64_t evictions = 0;
  uint64_t refused = 0;  // cells for which there was no room
  uint64_t verify_failures = 0;
  uint64_t windows_open = 0;
  uint64_t prefetch_bytes = 0;
  uint64_t prefetch_used_bytes = 0;  // of these, what somebody has read
};

struct StoreStats {
  std::vector<VolumeStats> volumes;
  uint64_t map_cache_bytes = 0;      // sum of the maps' memory_bytes
  uint64_t map_cache_max_bytes = 0;  // the cap
  TierStats tier;
  BootCacheStats boot_cache;
  std::array<DurationHistogram, kRequestKindCount> durations{};  // of requests of all volumes
};

// What there is room for where a store is, and what is left of it.
struct FileSystemSpace {
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;
};
struct StoreFileSystems {
  std::optional<FileSystemSpace> store;      // or it cannot be told
  std::optional<FileSystemSpace> templates;  // likewise; or their segments are in the store
};

}  // namespace tplstore
