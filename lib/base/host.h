// Who and where this process is, for writer records, and whether another process still lives.
// Thread safety: all. Nothing is thrown: what cannot be read is nil, 0 or "unknown".
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace tplstore {

struct HostIdentity {
  std::string host_name;
  Uuid host_id;  // /etc/machine-id
  Uuid boot_id;  // /proc/sys/kernel/random/boot_id
};
const HostIdentity& this_host();

// In clock ticks since boot (field 22 of /proc/PID/stat); 0 when there is no such process, or it
// is a zombie. With the pid it names a process for as long as the host is up.
uint64_t process_start_time(int64_t pid);

}  // namespace tplstore
