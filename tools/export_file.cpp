// Copies the runs that have data, leaves out what is zero, and shows progress.
#include "export_file.h"

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/error.h"
#include "image_sink.h"
#include "transfer/atomic_file.h"

namespace tplstore::tool {
namespace {

constexpr uint64_t kWindowBytes = uint64_t{1} << 30;  // of extents looked up at a time

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
  check_publish_target(file, options.may_replace);
}

uint64_t export_disk(Disk& disk, const std::string& file, const ExportOptions& options) {
  check_export_target(file, options);
  AtomicFile target(file);
  const auto fail_interrupted = [&] {
    if (options.interrupted()) fail(EINTR, file, "interrupted: nothing was left behind");
  };
  uint64_t written = 0;
  try {
    const auto sink = options.format == ImageFormat::kRaw
                          ? make_raw_sink(target.descriptor(), disk.size_bytes(), file)
                          : make_qcow2_sink(target.descriptor(), disk.size_bytes(), file);
    written = copy_disk(disk, *sink, options);
    fail_interrupted();
    sink->finish();
  } catch (const Error&) {
    // The terminal sends its SIGINT to qemu-nbd too, which then fails.
    fail_interrupted();
    throw;
  }
  target.publish(options.may_replace);
  return written;
}

}  // namespace tplstore::tool
