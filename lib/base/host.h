// Who and where this process is, for writer records, and whether another process still lives.
//
// A host is known by its machine id and a random number of its own, since a cloned image has the
// machine id of its original. The number is kept in kHostIdFile, which the first process makes that
// may. Where none may, or it cannot be read, the machine id is all there is; so what bears that is
// this host's too, also when the file is made later. Both are as good as what they are kept in:
// hosts that were cloned with that file have one id.
//
// Thread safety: all. Nothing is thrown: what cannot be read is nil, 0 or "unknown".
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace tplstore {

inline constexpr const char* kHostIdFile = "/var/lib/tplstore/host-id";

struct HostIdentity {
  std::string host_name;
  Uuid host_id;     // of the two that follow
  Uuid machine_id;  // /etc/machine-id
  Uuid boot_id;     // /proc/sys/kernel/random/boot_id

  // Whether who bears these is of this host. Without an id only its boot can tell.
  bool is_same(const Uuid& host, const Uuid& boot) const {
    if (host.is_nil()) return !boot.is_nil() && boot == boot_id;
    return host == host_id || host == machine_id;
  }
};
const HostIdentity& this_host();

// The number in a file, which is made with a new one if it is not there; nil when neither can be.
Uuid own_number(const std::string& path);

// In clock ticks since boot (field 22 of /proc/PID/stat); 0 when there is no such process, or it
// is a zombie. With the pid it names a process for as long as the host is up.
uint64_t process_start_time(int64_t pid);
// Of this process; read once, as the kernel goes through all threads for it.
uint64_t own_start_time();

}  // namespace tplstore
