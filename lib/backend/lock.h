// What those do with locks who hold them.
//
// Thread safety: pure functions. Errors: what try_lock() and is_locked() throw.
#pragma once

#include <cerrno>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "backend/backend.h"

namespace tplstore {

// As Backend::try_lock, trying for so long.
inline std::unique_ptr<HeldLock> try_lock_for(Backend& backend, const std::string& object,
                                              LockMode mode, std::chrono::milliseconds wait) {
  constexpr std::chrono::milliseconds kRetryInterval{10};
  const auto deadline = std::chrono::steady_clock::now() + wait;
  while (true) {
    if (auto lock = backend.try_lock(object, mode)) return lock;
    if (std::chrono::steady_clock::now() >= deadline) return nullptr;
    std::this_thread::sleep_for(kRetryInterval);
  }
}

// Of one that the caller holds: ENOLCK when it excludes nobody.
inline void check_lock_is_seen(Backend& backend, const std::string& object) {
  if (!backend.is_locked(object))
    fail(
        ENOLCK, backend.describe(),
        "file locks do not work on {}, so nobody could tell who has a volume; mount it with locks, "
        "or use another file system",
        backend.kind().name);
}

}  // namespace tplstore
