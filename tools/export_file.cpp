// Copies the runs that have data, leaves out what is zero, and shows progress.
#include "export_file.h"

#include <cerrno>

#include "base/error.h"
#include "image_sink.h"
#include "transfer/atomic_file.h"
#include "transfer/disk_copy.h"

namespace tplstore::tool {
namespace {

std::unique_ptr<ImageSink> make_sink(const Disk& disk, const OutputFile& target,
                                     const ExportOptions& options) {
  const uint64_t size = disk.size_bytes();
  if (options.format == ImageFormat::kQcow2)
    return make_qcow2_sink(target.descriptor(), size, target.name());
  if (target.is_stream() || options.compression != Compression::kNone)
    return make_stream_sink(target.descriptor(), size, target.name(), options.compression,
                            options.interrupted);
  return make_raw_sink(target.descriptor(), size, target.name());
}

}  // namespace

void check_export_target(const std::string& file, const ExportOptions& options) {
  check_publish_target(file, options.may_replace);
}

uint64_t export_disk(Disk& disk, const std::string& file, const ExportOptions& options) {
  OutputFile target(file, options.may_replace);
  const auto fail_interrupted = [&] {
    if (options.interrupted())
      fail(EINTR, target.name(), "{}",
           target.is_stream() ? "interrupted" : "interrupted: nothing was left behind");
  };
  uint64_t written = 0;
  try {
    const auto sink = make_sink(disk, target, options);
    copy_disk(disk, {.piece_bytes = kSinkBufferBytes,
                     .unit_bytes = sink->granularity_bytes(),
                     .take_buffer = [&] { return sink->take_buffer(); },
                     .add =
                         [&](uint64_t offset, Bytes run, bool is_zeroes) {
                           if (is_zeroes) return;
                           sink->write(offset, run);
                           written += run.size();
                         },
                     .progress =
                         [&](uint64_t offset) {
                           fail_interrupted();
                           options.progress(offset, disk.size_bytes());
                         }});
    fail_interrupted();
    sink->finish();
  } catch (const Error&) {
    // The terminal sends its SIGINT to qemu-nbd too, which then fails.
    fail_interrupted();
    throw;
  }
  target.publish();
  return written;
}

}  // namespace tplstore::tool
