// What an operator has decided for a store, for all who use it: the object "config.N" with the
// highest N, JSON; nothing, and what it leaves out, is as it is by default.
//
// Thread safety: all functions. Errors: EIO when it is damaged.
#pragma once

#include <cstdint>
#include <functional>

#include "backend/backend.h"

namespace tplstore {

struct StoreConfig {
  // For so long a volume is kept that was removed.
  int64_t keep_s = 0;
};

StoreConfig load_config(Backend& backend);
// Puts what `change` makes of it in its place, atomically. What it does not know of stays.
void put_config(Backend& backend, const std::function<void(StoreConfig&)>& change);

}  // namespace tplstore
