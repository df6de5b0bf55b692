// Who keeps what nothing refers to yet, and who removes what nothing refers to.
//
// Who makes something (an import, a new volume) shares the lock "gc.lock"; who removes templates or
// collects garbage has it alone. Locks need not meet between hosts. So where hosts may have the
// storage at the same time, a host that has the lock has a claim too, the object
// gc.claims/HOST.shared or .alone, and looks for those of others once its own is there: of two
// hosts that do not go together one at least sees the other, and does not begin. Nothing is asked
// of the storage but that who has made a name in a folder sees those that were made before.
//
// Within a host the lock says who is there; so the claims are the host's, and go with the last of
// its processes that has the lock. What one that was killed has left is in nobody's way on its
// host, and goes with the next one there. Another host's is never removed, nor passed over after
// some time: nobody can tell from here whether it is in use. Its operator does it, or the host
// itself.
//
// Thread safety: all.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace tplstore {

// The lock, and the claim where one is needed. Nothing when others of this host hold it for so
// long; EBUSY, naming it and what to do, when another host is in the way. `object` is for messages.
std::unique_ptr<HeldLock> hold_gc_lock(
    Backend& backend, LockMode mode, const std::string& object,
    std::chrono::milliseconds wait = std::chrono::milliseconds(0));

// Claims of this host although nobody of it has the lock, or this process alone: what one that was
// killed has left.
std::vector<std::string> find_stale_gc_claims(Backend& backend, bool is_held = false);

}  // namespace tplstore
