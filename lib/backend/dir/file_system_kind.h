// What is known of a file system, by the number that statfs(2) has for it.
// Thread safety: a pure function.
#pragma once

#include "backend/backend.h"

namespace tplstore {

// Of that of an open file or directory; O_PATH will do. Unknown where it cannot be asked.
StorageKind kind_of_file_system(int fd);

}  // namespace tplstore
