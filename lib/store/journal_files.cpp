// Making, mapping and removing these files.
#include "store/journal_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>

#include "base/files.h"
#include "base/host.h"

namespace tplstore {
namespace {

// The largest of which a file system has many times as much left: with it, who writes for the first
// time and never flushes is hardly ever held up by a commit.
constexpr uint64_t kJournalFileSizes[] = {8 << 20, 4 << 20, 1 << 20};
constexpr uint64_t kJournalFilesOfFree = 64;
constexpr uint64_t kJournalFileBytesMax = 64 << 20;
// The lock of a process that has been killed may outlast those of what else it had open.
constexpr std::chrono::milliseconds kJournalLockWaitMax{2000};
constexpr std::chrono::milliseconds kJournalLockLookAgain{5};

class JournalMapping final : public JournalMemory {
 public:
  JournalMapping(const FileDescriptor& file, const std::string& path, uint64_t size_bytes) {
    void* const at = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (at == MAP_FAILED) fail_errno(errno, path, "mapping it");
    bytes_ = {static_cast<std::byte*>(at), size_bytes};
  }
  ~JournalMapping() override { ::munmap(bytes_.data(), bytes_.size()); }
  MutableBytes bytes() override { return bytes_; }

 private:
  MutableBytes bytes_;
};

// It is held as long as the file is mapped.
void lock_journal(const FileDescriptor& file, const std::string& path) {
  const auto start = std::chrono::steady_clock::now();
  while (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) fail_errno(errno, path, "locking it");
    if (std::chrono::steady_clock::now() - start >= kJournalLockWaitMax)
      fail(EBUSY, path,
           "another process has it, which serves the volume or one that this store is a copy of; "
           "end that one first");
    std::this_thread::sleep_for(kJournalLockLookAgain);
  }
}

uint64_t journal_bytes_in(const std::string& folder) {
  struct statvfs status {};
  if (::statvfs(folder.c_str(), &status) != 0) fail_errno(errno, folder, "looking at it");
  const uint64_t free_bytes = uint64_t{status.f_bavail} * status.f_frsize;
  for (const uint64_t size_bytes : kJournalFileSizes)
    if (size_bytes <= free_bytes / kJournalFilesOfFree) return size_bytes;
  return std::end(kJournalFileSizes)[-1];
}

void make_journal_folder(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    fail_errno(errno, path, "making the folder");
}

}  // namespace

Uuid JournalFiles::boot() const { return this_host().boot_id; }

std::unique_ptr<JournalMemory> JournalFiles::create(const Uuid& volume, const Uuid& id,
                                                    std::string& path) {
  std::string wanted;
  try {
    if (boot().is_nil()) fail(ENOENT, "boot id", "cannot be read");
    make_journal_folder(directory());
    wanted = fmt::format("{}/{}.{}", directory(), volume.text(), id.text());
    if (wanted.size() > kJournalPathBytesMax) fail(ENAMETOOLONG, wanted, "is too long a name");
    const FileDescriptor file(
        ::open(wanted.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!file) fail_errno(errno, wanted, "making it");
    try {
      lock_journal(file, wanted);
      // Memory that is not there yet would be a signal, and not an error, when it is written.
      const uint64_t size_bytes = journal_bytes_in(directory());
      const int code = ::posix_fallocate(file.get(), 0, static_cast<off_t>(size_bytes));
      if (code != 0) fail_errno(code, wanted, "allocating it");
      auto memory = std::make_unique<JournalMapping>(file, wanted, size_bytes);
      // Else the first touch brings in much of it, of which most volumes need a page. Only advice.
      ::madvise(memory->bytes().data(), size_bytes, MADV_RANDOM);
      path = wanted;
      return memory;
    } catch (...) {
      ::unlink(wanted.c_str());
      throw;
    }
  } catch (const Error& error) {
    log_(
        fmt::format("{}: what volume {} is told to write and not flushed will not survive the "
                    "death of this server, as there is no place to keep track of it",
                    error.what(), volume.text()));
    return nullptr;
  }
}

std::unique_ptr<JournalMemory> JournalFiles::open(const std::string& path) {
  if (!is_ours(path)) return nullptr;
  const FileDescriptor file(::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  if (!file) {
    if (errno == ENOENT || errno == ENOTDIR) return nullptr;
    fail_errno(errno, path, "opening what a server has left of a volume's last writes");
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail_errno(errno, path, "looking at it");
  const auto size_bytes = static_cast<uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || size_bytes == 0 || size_bytes > kJournalFileBytesMax)
    return nullptr;
  lock_journal(file, path);
  return std::make_unique<JournalMapping>(file, path, size_bytes);
}

// What a log names is untrusted.
bool JournalFiles::is_ours(const std::string& path) const {
  const std::filesystem::path parts(path);
  const std::string name = parts.filename().string();
  Uuid uuid;
  const size_t length = uuid.text().size();
  return parts.is_absolute() && parts.parent_path().filename() == store_.text() &&
         name.size() == 2 * length + 1 && name[length] == '.' &&
         parse_uuid(std::string_view(name).substr(0, length), uuid) &&
         parse_uuid(std::string_view(name).substr(length + 1), uuid);
}

void JournalFiles::remove(const std::string& path) noexcept {
  try {
    if (is_ours(path)) ::unlink(path.c_str());
  } catch (const std::exception&) {
    // It stays until the volume is opened again.
  }
}

void JournalFiles::remove_others(const Uuid& volume, const std::string& kept) noexcept {
  try {
    if (!is_servers()) return;
    const std::string folder = directory();
    const FileDescriptor opened(
        ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    std::vector<std::string> names;
    if (!opened || read_folder(opened.get(), names) != 0) return;
    for (const std::string& name : names) {
      if (!name.starts_with(volume.text() + ".")) continue;
      const std::string path = fmt::format("{}/{}", folder, name);
      if (path != kept) remove(path);
    }
  } catch (const std::exception&) {
    // Likewise.
  }
}

}  // namespace tplstore
