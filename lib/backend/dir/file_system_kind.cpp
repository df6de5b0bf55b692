// The numbers are from statfs(2), linux/magic.h, and the sources of file systems outside of Linux.
#include "backend/dir/file_system_kind.h"

#include <sys/vfs.h>

#include <cstdint>

#include "base/error.h"

namespace tplstore {
namespace {

using Reach = StorageKind::Reach;

struct Known {
  uint32_t magic;
  const char* name;
  Reach reach;
};

constexpr Known kKnown[] = {
    {0x0000ef53, "ext4", Reach::kOneHost},     {0x58465342, "XFS", Reach::kOneHost},
    {0x9123683e, "btrfs", Reach::kOneHost},    {0xf2f52010, "F2FS", Reach::kOneHost},
    {0x2fc12fc1, "ZFS", Reach::kOneHost},      {0xca451a4e, "bcachefs", Reach::kOneHost},
    {0x3153464a, "JFS", Reach::kOneHost},      {0x52654973, "ReiserFS", Reach::kOneHost},
    {0x00003434, "NILFS", Reach::kOneHost},    {0x794c7630, "overlayfs", Reach::kOneHost},
    {0x01021994, "tmpfs", Reach::kOneHost},    {0x858458f6, "ramfs", Reach::kOneHost},
    {0x00006969, "NFS", Reach::kHosts},        {0x0000517b, "SMB", Reach::kHosts},
    {0xff534d42, "SMB", Reach::kHosts},        {0xfe534d42, "SMB", Reach::kHosts},
    {0x65735546, "FUSE", Reach::kHosts},       {0x01021997, "9P", Reach::kHosts},
    {0x00c36400, "CephFS", Reach::kHosts},     {0x7461636f, "OCFS2", Reach::kHosts},
    {0x01161970, "GFS2", Reach::kHosts},       {0x0bd00bd0, "Lustre", Reach::kHosts},
    {0x47504653, "GPFS", Reach::kHosts},       {0x5346414f, "AFS", Reach::kHosts},
    {0x19830326, "BeeGFS", Reach::kHosts},     {0x73757245, "Coda", Reach::kHosts},
    {0x786f4256, "VirtualBox", Reach::kHosts},
};

}  // namespace

StorageKind kind_of_file_system(int fd) {
  struct statfs status {};
  if (fd < 0 || fstatfs(fd, &status) != 0) return {"unknown", Reach::kUnknown};
  const auto magic = static_cast<uint64_t>(status.f_type);
  for (const Known& known : kKnown)
    if (known.magic == (magic & UINT32_MAX)) return {known.name, known.reach};
  return {fmt::format("unknown file system {:#x}", magic), Reach::kUnknown};
}

}  // namespace tplstore
