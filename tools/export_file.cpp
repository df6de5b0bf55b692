#include "export_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <vector>

#include "dir_path.h"
#include "error.h"
#include "image_sink.h"

namespace tplstore::tool {
namespace {

constexpr uint64_t kWindowBytes = uint64_t{1} << 30;  // of extents looked up at a time

// A name in the target's folder that is removed again unless it was published.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string file) : file_(std::move(file)) {
    const std::filesystem::path target = std::filesystem::absolute(file_);
    folder_ = target.parent_path();
    path_ = folder_ /
            fmt::format(".tplstore-export-{}-{:08x}.part", ::getpid(), random_u64() & UINT32_MAX);
    target_ = target;
  }
  ~TemporaryFile() {
    if (!is_published_) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }

  void publish(bool may_replace) {
    int result = ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(),
                             may_replace ? 0 : RENAME_NOREPLACE);
    // Some file systems, NFS for one, know no such flag.
    if (result != 0 && (errno == EINVAL || errno == ENOSYS) && !may_replace) {
      result = ::link(path_.c_str(), target_.c_str());
      if (result == 0) ::unlink(path_.c_str());
    }
    if (result != 0) fail_errno(errno, file_, "giving the finished file its name");
    is_published_ = true;
    const FileDescriptor folder(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder || ::fsync(folder.get()) != 0) fail_errno(errno, file_, "syncing its folder");
  }

 private:
  std::string file_;
  std::filesystem::path folder_;
  std::string path_;
  std::string target_;
  bool is_published_ = false;
};

// Copies one run of data, without the zeroes in it; the number of bytes written.
uint64_t copy_run(Disk& disk, ImageSink& sink, const Extent& run, const ExportOptions& options) {
  const uint64_t end = run.offset + run.length;
  const uint64_t unit = sink.granularity_bytes();
  uint64_t written = 0;
  for (uint64_t offset = run.offset; offset < end;) {
    if (options.interrupted()) return written;
    options.progress(offset, disk.size_bytes());
    // Up to a multiple of the unit, so that the next piece starts aligned.
    const uint64_t piece_end = std::min(end, round_down(offset + kSinkBufferBytes, unit));
    const MutableBytes buffer = sink.take_buffer().first(piece_end - offset);
    disk.read(offset, buffer);
    // Neighbouring units with something in them are written together.
    for (uint64_t start = offset; start < piece_end;) {
      uint64_t stop = start;
      const auto unit_end = [&](uint64_t at) {
        return std::min(piece_end, round_down(at, unit) + unit);
      };
      while (stop < piece_end && !is_zero(buffer.subspan(stop - offset, unit_end(stop) - stop)))
        stop = unit_end(stop);
      if (stop > start) {
        sink.write(start, buffer.subspan(start - offset, stop - start));
        written += stop - start;
      }
      start = stop < piece_end ? unit_end(stop) : piece_end;
    }
    offset = piece_end;
  }
  return written;
}

uint64_t copy_disk(Disk& disk, ImageSink& sink, const ExportOptions& options) {
  const uint64_t size = disk.size_bytes();
  uint64_t written = 0;
  for (uint64_t offset = 0; offset < size && !options.interrupted();) {
    std::vector<Extent> runs;
    disk.extents(offset, std::min(kWindowBytes, size - offset), [&](const Extent& extent) {
      runs.push_back(extent);
      return true;
    });
    ensure(!runs.empty() && runs.back().offset + runs.back().length > offset,
           "extents make progress");
    for (const Extent& run : runs)
      if (!run.is_hole) written += copy_run(disk, sink, run, options);
    offset = runs.back().offset + runs.back().length;
    options.progress(offset, size);
  }
  return written;
}

}  // namespace

void check_export_target(const std::string& file, const ExportOptions& options) {
  struct stat status {};
  if (::lstat(file.c_str(), &status) != 0) {
    if (errno != ENOENT) fail_errno(errno, file, "looking for the file");
    return;
  }
  if (!S_ISREG(status.st_mode))
    fail(EEXIST, file, "it exists and is not a regular file: choose another name");
  if (!options.may_replace) fail(EEXIST, file, "the file exists: use --force to replace it");
}

uint64_t export_disk(Disk& disk, const std::string& file, const ExportOptions& options) {
  check_export_target(file, options);
  TemporaryFile temporary(file);
  const auto fail_interrupted = [&] {
    if (options.interrupted()) fail(EINTR, file, "interrupted: nothing was left behind");
  };
  uint64_t written = 0;
  try {
    const auto sink = options.format == ImageFormat::kRaw
                          ? make_raw_sink(temporary.path(), disk.size_bytes(), file)
                          : make_qcow2_sink(temporary.path(), disk.size_bytes(), file);
    written = copy_disk(disk, *sink, options);
    fail_interrupted();
    sink->finish();
  } catch (const Error&) {
    // The terminal sends its SIGINT to qemu-nbd too, which then fails.
    fail_interrupted();
    throw;
  }
  temporary.publish(options.may_replace);
  return written;
}

}  // namespace tplstore::tool
