// The servers of a store: where their control sockets are, and which of them are gone.
//
// A store may be on a file system that hosts share; a socket cannot. So a socket is in the run
// directory of its host, as <uuid of the store>.<pid>.sock, and an object of the store leads to it:
// servers/<id of the host>.<pid>, with the socket's path and the boot's id. Who asks may have
// another run directory than the server (a root shell, another user's service).
//
// A server holds the lock of its object, shared. So an object of this host that is not locked is of
// a dead server, and whoever meets it removes it and the socket; another host's is left alone. And
// a copy of a store leads to nobody: nothing in it is locked, whatever the original's servers do.
//
// Locks need not meet between hosts. So where several may have the storage a server signs its
// object every few seconds, and looks at those of other hosts: one that signs while nobody seems to
// hold its lock holds one that is not seen here.
//
// Thread safety: free functions all, the classes none. Errors: Error with the system's errno.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "base/files.h"
#include "base/log.h"
#include "control/socket.h"

namespace tplstore::control {

// The first of /run/tplstore, $XDG_RUNTIME_DIR/tplstore and /tmp/tplstore-<uid> that this process
// may write to. With `makes` it is made, for its user only, if it is not there; EACCES when there
// is none. Without, it is then the last one, which need not be there.
std::string run_directory(bool makes);
// The same of `candidates`. Where everybody may make things, in /tmp, it must be our own.
std::string usable_directory(const std::vector<std::string>& candidates, bool makes);

struct ServerPlace {
  std::string object;  // that leads to it, if it was found by that
  std::string directory;
  std::string socket;  // its name there

  std::string path() const { return directory + "/" + socket; }
  // The server's process, as that knows itself; where pids have namespaces others may have it too.
  std::string pid() const;
  // For messages: "server 4711", or "server 4711-1" for another one of that pid.
  std::string describe() const;
};

// What leads to a server of this process, as long as it is there. Making it opens no socket; the
// name is this server's alone.
class Announcement {
 public:
  // On a disk that is full the object stays empty: then those who have `directory` as their own run
  // directory find the server. EBUSY when a server runs on another host with this one's ids; ENOLCK
  // when its own lock is not seen.
  Announcement(Backend& backend, const std::string& directory);
  ~Announcement();  // removes the socket too
  Announcement(const Announcement&) = delete;
  Announcement& operator=(const Announcement&) = delete;

  const ServerPlace& place() const { return place_; }
  // Does nothing where the object is empty.
  void sign();

 private:
  Backend& backend_;
  ServerPlace place_;
  std::unique_ptr<HeldLock> lock_;
  uint64_t signatures_ = 0;
};

// The servers of other hosts.
class Neighbours {
 public:
  struct Unseen {
    std::string object;
    std::string host_name;
  };
  // Those that have signed since they were looked at last, though their lock was free then and is.
  std::vector<Unseen> look(Backend& backend);

 private:
  std::map<std::string, std::string> free_;  // what was in those whose lock was free
};

// Signs, and looks, every few seconds; of each server whose lock is not seen the operator is told.
class NeighbourWatch {
 public:
  // std::system_error when there is no thread for it.
  NeighbourWatch(Backend& backend, Announcement& own, Log log);

 private:
  std::jthread thread_;
};

// All of this host that are alive, in the order of their names. `own_directory` may be missing.
std::vector<ServerPlace> find_servers(Backend& backend, const std::string& own_directory);

// Those whose sockets are in `directory` and that are the process `pid`, whatever their stores: by
// what the system says of who listens there. Their `object` is empty.
std::vector<ServerPlace> find_servers_of(pid_t pid, const std::string& directory);

// Who is at the other end of a connection; its pid is 0 where that cannot be seen from here.
std::optional<ucred> peer_of(int socket);

// Connects; nothing when nobody listens there.
FileDescriptor connect_to(const ServerPlace& place, Clock::time_point deadline);

}  // namespace tplstore::control
