// What is known of a file system by the number that statfs(2) has for it.
// Thread safety: pure functions.
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace tplstore {

StorageKind kind_of_file_system(uint64_t magic);

}  // namespace tplstore
