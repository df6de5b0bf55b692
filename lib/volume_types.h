// What the store tells about volumes and versions. Plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bytes.h"

namespace tplstore {

// Who is at the other end of a connection. Two connections belong to one VM when pid is not 0 and
// pid and start time are equal.
struct Peer {
  std::string address;  // for messages: "unix socket, pid 4711", "127.0.0.1:50122", "tplstore tool"
  int64_t pid = 0;      // 0 when unknown (TCP, or outside our pid namespace)
  uint64_t start_time = 0;  // of that process, in clock ticks since boot; 0 when unknown

  bool is_same_vm(const Peer& other) const {
    return pid != 0 && pid == other.pid && start_time == other.start_time;
  }
};

// The writer of a volume as its header has it: for people and for other hosts.
struct WriterInfo {
  std::string host_name;
  Uuid host_id;
  Uuid boot_id;
  uint32_t server_pid = 0;
  uint64_t server_start_time = 0;
  std::string peer;
  uint64_t epoch = 0;
};

struct VersionInfo {
  uint32_t number = 0;
  std::string name;        // empty when it has none
  uint32_t parent = 0;     // the version it started from; 0 for the first
  int64_t created_ns = 0;  // when it was frozen; for the current one, when it began
  uint64_t size_bytes = 0;
  uint64_t own_bytes = 0;  // what its data file occupies
  bool is_hidden = false;
  bool is_current = false;
};

struct VolumeInfo {
  std::string name;
  Uuid uuid;
  uint64_t size_bytes = 0;
  std::string template_name;  // empty when it has none
  uint32_t current_version = 0;
  bool is_attached = false;           // somebody has it open for writing
  std::optional<WriterInfo> writer;   // who that is, as far as the header tells
  uint64_t unique_bytes = 0;          // what its files occupy
  std::vector<VersionInfo> versions;  // oldest first; filled by Store::show_volume only
};

// Counters of one open volume since it was opened.
struct VolumeStats {
  std::string name;
  uint32_t current_version = 0;
  uint64_t size_bytes = 0;
  uint32_t connections = 0;
  uint64_t reads = 0, read_bytes = 0;
  uint64_t writes = 0, write_bytes = 0;
  uint64_t trims = 0, trim_bytes = 0;
  uint64_t zeroes = 0, zero_bytes = 0;
  uint64_t flushes = 0;
  uint64_t errors = 0;
  uint64_t first_writes = 0;  // blocks written for the first time in their version
  uint64_t template_reads = 0, template_read_bytes = 0;    // pieces read from template segments
  uint64_t data_file_reads = 0, data_file_read_bytes = 0;  // pieces read from data files
  uint64_t commits = 0;            // group commits, at least one flush or FUA each
  uint64_t log_bytes = 0;          // the map log up to its tail
  uint64_t log_garbage_bytes = 0;  // of which a compaction would drop
  uint64_t log_generation = 0;
  uint64_t checkpoints = 0;
  uint64_t compactions = 0;
  uint64_t map_bytes = 0;  // map metadata in memory
  uint64_t map_loads = 0;  // nodes read from the log
  uint64_t map_evictions = 0;
};

struct StoreStats {
  std::vector<VolumeStats> volumes;
  uint64_t map_cache_bytes = 0;      // sum of map_bytes
  uint64_t map_cache_max_bytes = 0;  // the cap
};

}  // namespace tplstore
