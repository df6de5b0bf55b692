// The disk of a running VM that is a volume: found in its qemu, and made as large as that is.
//
// The size of an NBD export is told when a client connects. So qemu is given another connection,
// which takes the place of the one that it has: under the raw node over it, where that has a name
// of its own (blockdev-reopen), else under the device (its property "drive"). What the guest has in
// flight ends on the one before. The guest is told by block_resize, and what is not needed any more
// is removed.
//
// Thread safety: one thread. Errors: as Qmp; ENOENT when no disk of that qemu is the volume.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "qmp.h"

namespace tplstore::tool {

class QemuDisk {
 public:
  // Finds it, and changes nothing.
  QemuDisk(Qmp& qmp, const std::string& volume);
  uint64_t size_bytes() const { return size_bytes_; }
  // A second connection of this qemu must be let in now. What fails leaves the disk as it was.
  void grow(uint64_t size_bytes);

 private:
  bool has_node(const std::string& name);
  void remove_node(const std::string& name) noexcept;
  void replace(const std::string& connection, uint64_t size_bytes);

  Qmp& qmp_;
  const std::string volume_;
  nlohmann::json connect_;  // what blockdev-add needs to connect as this one has
  nlohmann::json cache_;    // how the node over it uses caches
  std::string detect_zeroes_;
  std::string old_;     // the node of the connection
  std::string raw_;     // the node over it that has a name of its own; or none
  std::string device_;  // whose root is that one, or the connection; or none
  uint64_t size_bytes_ = 0;
};

// What a node's file name says of an NBD connection, in the form of blockdev-add; null when it is
// none. Pure.
nlohmann::json parse_nbd_node(const std::string& file_name);

}  // namespace tplstore::tool
