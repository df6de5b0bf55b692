// The backend on a local directory: one file per object, one folder per folder.
//
// What is durable when: a created or removed name after sync_folder(); put_new() writes an unnamed
// file, syncs it, links it under its name and syncs the folder. Syncing a folder also makes the
// folder itself durable, with all above it, whoever made them; what is known to be durable is not
// synced again. put_claim() syncs nothing, but where other hosts may have the directory too: there
// it is put_new(), for they must find whole what they find.
//
// Names reach files beneath the directory only: see backend/object_name.h and base/files.h. Files
// that are not objects (of any other form of name, e.g. ".tmp-…" of put_new) are not listed.
//
// A write may be on its way to the disk still when its process has been killed and its descriptors
// are closed. An exclusive lock is held until such writes have ended: those of plain calls keep the
// dying process, and so its descriptors; rings have the locks' files registered
// (backend/dir/io_ring.h).
//
// What root makes in a directory of somebody else's is given to the owner of the directory.
//
// Data bypasses the page cache when that is asked for and the file system can do it; metadata never
// does. All directories of a process share one pool of rings and one budget of descriptors, three
// quarters of what it may open when the first is opened: see backend/dir/dir_object.h.
//
// Thread safety: all methods. Errors: Error with the system's errno and the path; EINVAL for what
// is no name. Objects must not outlive the backend; locks may.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>

#include "backend/backend.h"
#include "backend/dir/dir_object.h"
#include "backend/dir/io_ring.h"
#include "base/log.h"

namespace tplstore {

struct DirOptions {
  mode_t file_mode = kFileMode;  // of new files, before the umask
  // What follows only tests change.
  size_t descriptor_cap = 0;     // of this directory's own; 0: it shares what the process has
  bool without_tmpfile = false;  // as on a file system without O_TMPFILE
  std::function<int(int)> fdatasync = {};     // empty: the system's
  std::function<void()> before_locking = {};  // called when an object is open to be locked
};

// What the directories of a process share.
struct DirResources {
  explicit DirResources(size_t descriptor_cap) : cache(descriptor_cap) {}

  DescriptorCache cache;
  IoRingPool rings;
};

class DirBackend final : public Backend {
 public:
  // The directory must exist (ENOENT). `log` gets a line when something works in a lesser way.
  DirBackend(const std::string& directory, bool direct, Log log, const DirOptions& options = {});
  ~DirBackend() override;

  std::unique_ptr<Object> open(const std::string& name, Access access, Purpose purpose) override;
  std::unique_ptr<Object> create(const std::string& name, uint64_t size_bytes,
                                 Purpose purpose) override;
  bool put_new(const std::string& name, Bytes content) override;
  bool put_claim(const std::string& name, Bytes content) override;
  std::optional<ByteVector> get(const std::string& name, uint64_t max_bytes) override;
  std::vector<std::string> list(const std::string& folder) override;
  bool remove(const std::string& name) override;
  void remove_folder(const std::string& folder) override;
  void sync_folder(const std::string& folder) override;
  using Backend::try_lock;
  std::unique_ptr<HeldLock> try_lock(const std::string& name, LockMode mode,
                                     uint64_t slot) override;
  bool is_locked(const std::string& name) override;
  uint32_t write_alignment_bytes() const override;
  std::string describe() const override;
  StorageKind kind() const override { return kind_; }
  std::optional<StorageSpace> space() override;
  bool is_in_place() override;

  // For tests: descriptors of objects that are open now, and batches that went through a ring, of
  // all directories that share them.
  size_t open_descriptors() const;
  uint64_t ring_batches() const;

 private:
  FileDescriptor open_file(const std::string& name, int access, struct stat& status);
  FileDescriptor open_folder_of(const std::string& name, bool make);
  bool publish(const std::string& name, int folder_fd, Bytes content, bool syncs);
  void sync_path(const std::string& folder);
  FileDescriptor open_to_lock(const std::string& name, bool is_shared);
  bool is_still(const std::string& name, int fd);
  void run_reads(std::span<const ReadPiece> pieces, BatchFailures& failures) override;
  void run_writes(std::span<const WritePiece> pieces, BatchFailures& failures) override;
  template <typename Piece>
  void run(std::span<const Piece> pieces, BatchFailures& failures);
  template <typename Piece>
  void run_some(std::span<const Piece> pieces, size_t first, BatchFailures& failures);
  [[noreturn]] void fail_at(int code, std::string_view name, std::string_view action) const;

  const std::shared_ptr<DirResources> resources_;
  DirStorage storage_;
  StorageKind kind_;
  const bool has_tmpfile_;
  const mode_t file_mode_;
  const std::function<void()> before_locking_;

  Mutex mutex_;
  // Their own names are durable.
  std::unordered_set<std::string> durable_folders_ GUARDED_BY(mutex_);
};

}  // namespace tplstore
