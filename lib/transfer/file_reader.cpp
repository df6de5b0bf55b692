// A ring of buffers: the thread fills them in order, the caller empties them in order.
#include "transfer/file_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <vector>

#include "base/files.h"
#include "base/mutex.h"

namespace tplstore {
namespace {

// So far ahead of what is being read the storage is told to read.
constexpr uint64_t kAheadBytes = uint64_t{32} << 20;
constexpr uint64_t kAheadStepBytes = uint64_t{4} << 20;
// A thread that does not end is waited for so long.
constexpr std::chrono::seconds kPartingWait{2};

}  // namespace

NextExtent data_of_file(uint64_t size_bytes) {
  return [size_bytes, at = uint64_t{0}](int descriptor) mutable -> std::optional<FileExtent> {
    if (at >= size_bytes) return {};
    const off_t begin = lseek(descriptor, static_cast<off_t>(at), SEEK_DATA);
    // One that was cut has no data there either; to read it is an error.
    if (begin < 0 && errno == ENXIO &&
        lseek(descriptor, 0, SEEK_END) >= static_cast<off_t>(size_bytes))
      return {};
    const off_t end = begin < 0 ? -1 : lseek(descriptor, begin, SEEK_HOLE);
    const FileExtent rest{at, size_bytes - at, at};
    at = size_bytes;
    // Devices, and file systems that know no holes.
    if (end < 0) return rest;
    const uint64_t from = static_cast<uint64_t>(begin);
    at = std::min(static_cast<uint64_t>(end), size_bytes);
    if (from >= at) return {};
    return FileExtent{from, at - from, from};
  };
}

struct FileReader::State {
  struct Slot {
    uint64_t offset = 0;
    uint64_t length = 0;
    ByteVector buffer;
  };

  FileDescriptor file;
  std::string name;
  uint64_t disk_bytes;
  NextExtent extents;
  std::vector<Slot> slots;

  Mutex mutex;
  ConditionVariable changed;
  uint64_t filled GUARDED_BY(mutex) = 0;
  uint64_t taken GUARDED_BY(mutex) = 0;    // by the caller
  uint64_t emptied GUARDED_BY(mutex) = 0;  // that the caller has done with
  bool is_stopped GUARDED_BY(mutex) = false;
  bool has_ended GUARDED_BY(mutex) = false;
  std::exception_ptr error GUARDED_BY(mutex);

  // The thread's own.
  Slot* filling = nullptr;
  uint64_t advised_to = 0;

  void run() noexcept {
    std::exception_ptr failure;
    try {
      read_all();
    } catch (...) {
      failure = std::current_exception();
    }
    const Lock lock(mutex);
    error = failure;
    has_ended = true;
    changed.notify_all();
  }

  void read_all() {
    while (const auto extent = extents(file.get())) {
      for (uint64_t done = 0; done < extent->length;) {
        const uint64_t at = extent->disk_offset + done;
        if (!make_room(at)) return;
        const uint64_t inside = at - filling->offset;
        const uint64_t count = std::min(extent->length - done, filling->buffer.size() - inside);
        const MutableBytes buffer(filling->buffer);
        std::ranges::fill(buffer.subspan(filling->length, inside - filling->length), std::byte{0});
        advise(extent->file_offset + done, extent->file_offset + extent->length);
        read(extent->file_offset + done, buffer.subspan(inside, count));
        filling->length = inside + count;
        done += count;
      }
    }
    if (filling != nullptr) hand_over();
  }

  // Has a slot being filled that this place of the disk fits in, behind what is in it. False when
  // all is to end.
  bool make_room(uint64_t at) {
    if (filling != nullptr) {
      const uint64_t end = round_up(filling->offset + filling->length, kBlockBytes);
      if (at > end || at - filling->offset >= filling->buffer.size()) hand_over();
    }
    const Lock lock(mutex);
    while (filling == nullptr && !is_stopped && filled - emptied == slots.size())
      changed.wait(mutex);
    if (is_stopped || filling != nullptr) return !is_stopped;
    filling = &slots[filled % slots.size()];
    filling->offset = round_down(at, kBlockBytes);
    filling->length = 0;
    return true;
  }

  void hand_over() {
    const uint64_t end =
        std::min(round_up(filling->length, kBlockBytes), disk_bytes - filling->offset);
    const MutableBytes buffer(filling->buffer);
    std::ranges::fill(buffer.subspan(filling->length, end - filling->length), std::byte{0});
    filling->length = end;
    filling = nullptr;
    const Lock lock(mutex);
    ++filled;
    changed.notify_all();
  }

  void advise(uint64_t from, uint64_t end) {
    if (advised_to < from || advised_to > from + 2 * kAheadBytes) advised_to = from;
    end = std::min(end, from + kAheadBytes);
    if (end < advised_to + kAheadStepBytes) return;
    (void)posix_fadvise(file.get(), static_cast<off_t>(advised_to),
                        static_cast<off_t>(end - advised_to), POSIX_FADV_WILLNEED);
    advised_to = end;
  }

  void read(uint64_t offset, MutableBytes into) {
    while (!into.empty()) {
      const ssize_t count = TEMP_FAILURE_RETRY(
          pread(file.get(), into.data(), into.size(), static_cast<off_t>(offset)));
      if (count < 0) fail_errno(errno, name, fmt::format("cannot read it at {}", offset));
      if (count == 0) fail(EIO, name, "ends at {}: it was cut while it was being read", offset);
      offset += static_cast<uint64_t>(count);
      into = into.subspan(static_cast<size_t>(count));
    }
  }
};

FileReader::FileReader(int descriptor, std::string name, uint64_t disk_bytes, NextExtent extents,
                       size_t pieces_ahead, size_t pieces_kept, size_t piece_bytes)
    : state_(std::make_shared<State>()), pieces_kept_(pieces_kept) {
  state_->file.reset(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
  if (!state_->file) fail_errno(errno, name, "cannot read it");
  state_->name = std::move(name);
  state_->disk_bytes = disk_bytes;
  state_->extents = std::move(extents);
  state_->slots.resize(pieces_ahead + pieces_kept);
  for (State::Slot& slot : state_->slots) slot.buffer.resize(piece_bytes);
  thread_ = std::thread([state = state_] { state->run(); });
}

FileReader::~FileReader() {
  const auto deadline = std::chrono::steady_clock::now() + kPartingWait;
  bool has_ended = false;
  {
    const Lock lock(state_->mutex);
    state_->is_stopped = true;
    state_->changed.notify_all();
    while (!state_->has_ended &&
           state_->changed.wait_until(state_->mutex, deadline) == std::cv_status::no_timeout) {
    }
    has_ended = state_->has_ended;
  }
  has_ended ? thread_.join() : thread_.detach();
}

bool FileReader::wait(std::chrono::milliseconds time) {
  State& state = *state_;
  const auto deadline = std::chrono::steady_clock::now() + time;
  const Lock lock(state.mutex);
  if (state.taken > state.emptied + pieces_kept_) {
    state.emptied = state.taken - pieces_kept_;
    state.changed.notify_all();
  }
  while (state.filled == state.taken && !state.has_ended)
    if (state.changed.wait_until(state.mutex, deadline) == std::cv_status::timeout) break;
  return state.filled > state.taken || state.has_ended;
}

std::optional<FileReader::Piece> FileReader::next() {
  State& state = *state_;
  while (!wait(std::chrono::hours(1))) {
  }
  const Lock lock(state.mutex);
  if (state.filled == state.taken) {
    if (state.error) std::rethrow_exception(state.error);
    return {};
  }
  const State::Slot& slot = state.slots[state.taken++ % state.slots.size()];
  return Piece{slot.offset, Bytes(slot.buffer).first(slot.length)};
}

}  // namespace tplstore
