// Whether a disk's partition table needs more disk than there is: the mark of an image that was
// cut short. Pure; what the disk says is untrusted.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "base/bytes.h"

namespace tplstore {

// What lies past the end ("partition 2 of its MBR ends at byte …"), or nothing. A disk without a
// partition table has nothing to say. `read` fills from an offset within size_bytes.
std::optional<std::string> find_partition_past_end(
    uint64_t size_bytes, const std::function<void(uint64_t offset, MutableBytes into)>& read);

}  // namespace tplstore
