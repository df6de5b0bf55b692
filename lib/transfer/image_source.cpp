// What stands in a file as it is, is read from there (transfer/file_reader.h); the rest is asked of
// an NBD server.
//
// How that pipeline works: a ring of slots, each with a buffer. Requests are sent in ascending
// order, one per free slot, and are handed to the consumer in the same order when the oldest has
// been answered; so at most `requests_in_flight` are on the way, and answers may come in any
// order. Everything happens on the caller's thread, inside nbd_poll.

#include "transfer/image_source.h"

#include <libnbd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <deque>
#include <vector>

#include "base/units.h"
#include "transfer/file_reader.h"
#include "transfer/image_check.h"
#include "transfer/partition_check.h"
#include "transfer/qemu_nbd.h"

namespace tplstore {
namespace {

constexpr uint64_t kStatusBytesMax = uint64_t{1} << 30;  // per question about extents
// How many such questions may be asked before they must have been worth it.
constexpr uint64_t kQuestionsFree = 1024;
constexpr std::chrono::milliseconds kPollInterval{200};
constexpr int kPollMilliseconds = kPollInterval.count();
constexpr int kPartingPolls = 10;  // 2 s at most for the server to let us go

bool is_nbd_uri(std::string_view source) {
  constexpr std::string_view kSchemes[] = {"nbd://",       "nbds://",      "nbd+unix://",
                                           "nbds+unix://", "nbd+vsock://", "nbds+vsock://"};
  return std::ranges::any_of(kSchemes,
                             [&](std::string_view scheme) { return source.starts_with(scheme); });
}

struct Range {
  uint64_t begin;
  uint64_t end;
};

// What has arrived of an answer, whose parts may come in any order.
class Arrived {
 public:
  void clear() {
    parts_.clear();
    fault_ = {};
  }
  void add(const Range& part) noexcept {
    if (part.begin == part.end) return;
    const auto next = std::find_if(parts_.begin(), parts_.end(),
                                   [&](const Range& known) { return known.end > part.begin; });
    const bool overlaps = next != parts_.end() && next->begin < part.end;
    const bool joins_next = next != parts_.end() && next->begin == part.end;
    const bool joins_last = next != parts_.begin() && (next - 1)->end == part.begin;
    if (overlaps) {
      fault_ = "has parts that overlap";
    } else if (joins_last) {
      (next - 1)->end = joins_next ? next->end : part.end;
      if (joins_next) parts_.erase(next);
    } else if (joins_next) {
      next->begin = part.begin;
    } else if (parts_.size() == kPartsMax) {
      fault_ = "is in too many parts that do not follow each other";
    } else {
      parts_.insert(next, part);
    }
  }
  // What is wrong with it as the whole answer for a range; nothing when it is just that.
  std::string_view fault(const Range& asked) const {
    if (!fault_.empty()) return fault_;
    const bool is_whole =
        parts_.size() == 1 && parts_[0].begin == asked.begin && parts_[0].end == asked.end;
    return is_whole ? "" : "leaves out a part";
  }

 private:
  static constexpr size_t kPartsMax = 1024;

  std::vector<Range> parts_ = make_room();  // that do not touch, in ascending order
  std::string_view fault_;

  static std::vector<Range> make_room() {
    std::vector<Range> room;
    room.reserve(kPartsMax);
    return room;
  }
};

// What the server was asked for. It stays where it is until that has been answered.
struct Command {
  bool is_done = false;
  int error = 0;

  nbd_completion_callback when_done() {
    nbd_completion_callback completion{};
    completion.user_data = this;
    completion.callback = [](void* user_data, int* code) {
      auto* command = static_cast<Command*>(user_data);
      command->error = *code;
      command->is_done = true;
      return 1;  // retire it
    };
    return completion;
  }
};

struct Slot {
  uint64_t offset = 0;
  ByteVector buffer;
  uint64_t length = 0;
  Arrived arrived = {};
  uint64_t* answered_bytes = nullptr;
  Command command = {};
};

// A server that loses its client in the middle of something complains on our stderr, so take leave
// properly; but one that does not answer must not hold us up.
struct Close {
  void operator()(nbd_handle* handle) const {
    for (int i = 0; i < kPartingPolls && nbd_aio_in_flight(handle) > 0; ++i) {
      if (nbd_poll(handle, kPollMilliseconds) < 0) break;
    }
    if (nbd_aio_is_ready(handle) == 1 && nbd_aio_in_flight(handle) == 0 &&
        nbd_aio_disconnect(handle, 0) == 0) {
      for (int i = 0; i < kPartingPolls && nbd_aio_is_closed(handle) == 0; ++i) {
        if (nbd_poll(handle, kPollMilliseconds) < 0) break;
      }
    }
    nbd_close(handle);
  }
};

class NbdSource : public ImageSource {
 public:
  NbdSource(const std::string& source, const ImageSourceOptions& options)
      : source_(source), options_(options), nbd_(nbd_create()) {
    if (!nbd_) fail_nbd("cannot start");
    if (nbd_add_meta_context(nbd_.get(), LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
      fail_nbd("cannot start");
    if (is_nbd_uri(source)) {
      open_uri();
    } else {
      open_file();
    }
    wait_for_connection();
    check_opened();
    examine();
  }

  uint64_t size_bytes() const override { return size_bytes_; }
  std::string description() const override { return description_; }

  void read_data(const std::function<void(uint64_t, Bytes)>& consume) override {
    if (file_ && !options_.allow_backing && (facts_.format == "raw" || facts_.extents))
      return read_file(consume);
    slots_.resize(std::max(options_.requests_in_flight, 1u) + kPiecesKept);
    for (Slot& slot : slots_) slot.buffer.resize(request_bytes_);
    uint64_t sent = 0, taken = 0;
    std::optional<Range> range = next_range();
    while (range || taken < sent) {
      while (range && sent - taken < slots_.size() - kPiecesKept) {
        send(slots_[sent % slots_.size()], *range);
        ++sent;
        if (range->begin == range->end) range = next_range();
      }
      Slot& oldest = slots_[taken % slots_.size()];
      wait_for_answer(oldest);
      consume(oldest.offset, Bytes(oldest.buffer).first(oldest.length));
      ++taken;
    }
  }

 private:
  [[noreturn]] void fail_nbd(std::string_view action) const {
    const int code = nbd_get_errno();
    const char* reason = nbd_get_error();
    fail(code == 0 ? EIO : code, source_, "{}: {}", action, reason ? reason : "no reason given");
  }

  void open_uri() {
    if (!options_.format.empty() && options_.format != "raw")
      fail(EINVAL, source_, "an NBD export has no image format: leave --format out");
    // The operator gave the URI, so it may name files with keys.
    nbd_set_uri_allow_local_file(nbd_.get(), true);
    if (nbd_aio_connect_uri(nbd_.get(), source_.c_str()) != 0) fail_nbd("cannot connect");
    is_plain_ = true;
    description_ = source_;
  }

  void open_file() {
    file_ = std::make_unique<ImageFile>(source_);
    facts_ =
        check_image_file(*file_, {options_.format, options_.allow_backing, options_.interrupted});
    is_plain_ = facts_.format == "raw";
    description_ = fmt::format("{} ({})", facts_.path, facts_.format);
    if (options_.allow_backing) {
      server_.emplace(std::vector<std::string>{"--read-only", "--format=" + facts_.format},
                      facts_.path, -1);
    } else {
      server_.emplace(
          std::vector<std::string>{"--read-only"},
          descriptor_image(facts_.format, QemuNbd::kImageDescriptor, file_->is_block_device()),
          file_->descriptor());
    }
    if (nbd_aio_connect_socket(nbd_.get(), server_->take_connection().release()) != 0)
      fail_nbd("cannot talk to qemu-nbd");
  }

  // Whoever may write to the image may have changed what it names since it was looked at.
  void check_opened() {
    if (!server_ || options_.allow_backing) return;
    if (server_->has_other_files(file_->descriptor())) refuse_reference(*file_, "other files");
    check_no_reference(*file_, facts_.format);
  }

  void check_interrupted() const {
    if (options_.interrupted && options_.interrupted()) fail(EINTR, source_, "interrupted");
  }

  // Lets the connection work until `is_ready`. What counts is how much of the disk the server has
  // told of while it was waited for, not when it last sent anything: else it could hold us up for
  // ever with a byte now and then.
  template <typename F>
  void wait_for(const F& is_ready) {
    while (!is_ready()) {
      check_interrupted();
      const auto begin = std::chrono::steady_clock::now();
      const int events = nbd_poll(nbd_.get(), kPollMilliseconds);
      if (events < 0 || nbd_aio_is_dead(nbd_.get()) == 1) {
        if (is_ready()) return;
        fail_nbd("lost the connection to the server that reads it");
      }
      // No longer than the poll: we may have been stopped meanwhile.
      waited_ += std::min<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - begin,
                                                    kPollInterval);
      if (answered_bytes_ >= options_.stall_bytes_min) {
        answered_bytes_ = 0;
        waited_ = {};
      }
      if (waited_ > std::chrono::seconds(options_.stall_seconds_max) && !is_ready())
        fail(ETIMEDOUT, source_,
             "the server that reads it is too slow, or does not answer: {} of the disk in {} s",
             format_size(answered_bytes_), options_.stall_seconds_max);
    }
  }

  // By ourselves, without the way through the server: it keeps the file locked for us, as qemu does
  // it.
  void read_file(const std::function<void(uint64_t, Bytes)>& consume) {
    NextExtent extents = data_of_file(size_bytes_);
    if (facts_.extents) {
      extents = [all = std::move(*facts_.extents),
                 i = size_t{0}](int) mutable -> std::optional<FileExtent> {
        if (i == all.size()) return {};
        return all[i++];
      };
    }
    FileReader& reader =
        reader_.emplace(file_->descriptor(), source_, size_bytes_, std::move(extents),
                        std::max(options_.requests_in_flight, 1u), kPiecesKept, request_bytes_);
    for (;;) {
      const auto deadline =
          std::chrono::steady_clock::now() + std::chrono::seconds(options_.stall_seconds_max);
      while (!reader.wait(kPollInterval)) {
        check_interrupted();
        if (std::chrono::steady_clock::now() > deadline)
          fail(ETIMEDOUT, source_, "its storage does not answer for {} s",
               options_.stall_seconds_max);
      }
      check_interrupted();
      const auto piece = reader.next();
      if (!piece) return;
      consume(piece->offset, piece->data);
    }
  }

  void wait_for_answer(const Slot& slot) {
    wait_for([&]() { return slot.command.is_done; });
    if (slot.command.error != 0)
      fail(EIO, source_, "cannot read {} at {}: {}; is the image or the server damaged?",
           format_size(slot.length), slot.offset, strerror(slot.command.error));
    const auto fault = slot.arrived.fault({slot.offset, slot.offset + slot.length});
    if (!fault.empty())
      fail(EIO, source_, "cannot read {} at {}: the server's answer {}; use another server",
           format_size(slot.length), slot.offset, fault);
  }

  void wait_for_connection() {
    wait_for([&]() { return nbd_aio_is_connecting(nbd_.get()) != 1; });
    if (nbd_aio_is_ready(nbd_.get()) != 1) fail_nbd("cannot connect to the server that reads it");
  }

  void examine() {
    const int64_t size = nbd_get_size(nbd_.get());
    // From 2^63 on it is negative, and there need not be an error.
    if (size < 0)
      fail(EFBIG, source_,
           "its disk has 2^63 bytes or more, which is larger than a template can be");
    size_bytes_ = static_cast<uint64_t>(size);
    check_disk_size(source_, size_bytes_);
    const bool is_file = !facts_.format.empty();
    if (is_file && size_bytes_ != facts_.size_bytes)
      fail(EINVAL, source_, "changed while it was being opened: from {} to {} bytes",
           facts_.size_bytes, size_bytes_);
    has_extents_ = nbd_can_meta_context(nbd_.get(), LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;

    constexpr uint64_t kUnitMax = 64 << 10;
    unit_ = std::max<uint64_t>(kBlockBytes, server_block_size(LIBNBD_SIZE_MINIMUM));
    if (unit_ > kUnitMax || (unit_ & (unit_ - 1)) != 0)
      fail(EINVAL, source_, "its server reads in units of {} bytes only, which is not supported",
           unit_);
    request_bytes_ = std::max<uint64_t>(round_down(options_.request_bytes, kUnitMax), kUnitMax);
    const uint64_t largest = server_block_size(LIBNBD_SIZE_MAXIMUM);
    if (largest >= unit_) request_bytes_ = std::min(request_bytes_, round_down(largest, unit_));

    if (!is_plain_) return;
    const auto fault = find_partition_past_end(
        size_bytes_, [&](uint64_t offset, MutableBytes into) { read_now(offset, into); });
    if (fault)
      fail(EINVAL, source_,
           "is cut short: it has {} bytes ({} sectors), and {}; fetch the image again, or stretch "
           "it with 'truncate' if its end does not matter",
           size_bytes_, size_bytes_ / kSectorBytes, *fault);
  }

  uint64_t server_block_size(int which) const {
    const int64_t size = nbd_get_block_size(nbd_.get(), which);
    return size > 0 ? static_cast<uint64_t>(size) : 0;
  }

  // Any range, at once; for the little that is looked at before the import.
  void read_now(uint64_t offset, MutableBytes into) {
    const Range range{round_down(offset, unit_),
                      std::min(size_bytes_, round_up(offset + into.size(), unit_))};
    slots_.resize(1);
    Slot& slot = slots_[0];
    slot.buffer.resize(range.end - range.begin);
    Range rest = range;
    send(slot, rest);
    wait_for_answer(slot);
    std::memcpy(into.data(), slot.buffer.data() + (offset - range.begin), into.size());
  }

  // Sends a read of what fits the slot, and takes that off the range.
  void send(Slot& slot, Range& range) {
    slot.offset = range.begin;
    slot.length = std::min<uint64_t>(slot.buffer.size(), range.end - range.begin);
    slot.arrived.clear();
    slot.answered_bytes = &answered_bytes_;
    slot.command = {};
    nbd_chunk_callback chunk{};
    chunk.user_data = &slot;
    chunk.callback = [](void* user_data, const void*, size_t count, uint64_t begin, unsigned status,
                        int*) {
      auto* filled = static_cast<Slot*>(user_data);
      if (status == LIBNBD_READ_ERROR) return 0;  // which is the error of the whole
      filled->arrived.add({begin, begin + count});
      *filled->answered_bytes += count;
      return 0;
    };
    if (nbd_aio_pread_structured(nbd_.get(), slot.buffer.data(), slot.length, slot.offset, chunk,
                                 slot.command.when_done(), 0) < 0)
      fail_nbd("cannot read");
    range.begin += slot.length;
  }

  // The next piece of data, in whole units.
  std::optional<Range> next_range() {
    while (ranges_.empty() && asked_ < size_bytes_) ask_extents();
    if (ranges_.empty()) return std::nullopt;
    const Range range = ranges_.front();
    ranges_.pop_front();
    return range;
  }

  void add_range(uint64_t begin, uint64_t end) {
    begin = round_down(begin, unit_);
    end = std::min(size_bytes_, round_up(end, unit_));
    // Two extents may share a unit; what was handed out already is not read again.
    begin = std::max(begin, data_end_);
    if (begin >= end) return;
    if (!ranges_.empty() && ranges_.back().end == begin) {
      ranges_.back().end = end;
    } else {
      ranges_.push_back({begin, end});
    }
    data_end_ = end;
  }

  struct Question {
    NbdSource* self = nullptr;
    uint64_t end = 0;
    Command command = {};
  };

  static int take_extents(void* user_data, const char* context, uint64_t offset, uint32_t* entries,
                          size_t entry_count, int*) {
    auto* question = static_cast<Question*>(user_data);
    NbdSource& self = *question->self;
    if (std::string_view(context) != LIBNBD_CONTEXT_BASE_ALLOCATION || offset != self.asked_)
      return 0;
    for (size_t i = 0; i + 1 < entry_count && self.asked_ < question->end; i += 2) {
      const uint64_t length = std::min<uint64_t>(entries[i], question->end - self.asked_);
      if ((entries[i + 1] & LIBNBD_STATE_ZERO) == 0)
        self.add_range(self.asked_, self.asked_ + length);
      self.asked_ += length;
      self.answered_bytes_ += length;
    }
    return 0;
  }

  void ask_extents() {
    const uint64_t begin = asked_;
    const uint64_t length = std::min(kStatusBytesMax, size_bytes_ - begin);
    // A server may answer for one byte at a time. Asking must not take more round trips than
    // reading all of it does; so what cannot be asked about is read.
    if (!has_extents_ || questions_ >= kQuestionsFree + asked_ / request_bytes_) {
      add_range(begin, begin + length);
      asked_ += length;
      return;
    }
    ++questions_;
    question_ = {this, begin + length, {}};
    nbd_extent_callback extents{};
    extents.callback = take_extents;
    extents.user_data = &question_;
    if (nbd_aio_block_status(nbd_.get(), length, begin, extents, question_.command.when_done(), 0) <
        0)
      fail_nbd("cannot ask which parts of it are data");
    wait_for([&]() { return question_.command.is_done; });
    if (question_.command.error != 0)
      fail(EIO, source_, "cannot find out which parts of it are data: {}",
           strerror(question_.command.error));
    if (asked_ == begin)
      fail(EIO, source_,
           "its server does not say which parts of it are data, though it offered to");
  }

  const std::string source_;
  const ImageSourceOptions options_;
  std::unique_ptr<ImageFile> file_;  // unless it is an export
  std::optional<FileReader> reader_;
  ImageFacts facts_;
  bool is_plain_ = false;  // a disk as it is, without a format around it
  std::string description_;
  uint64_t size_bytes_ = 0;
  bool has_extents_ = false;
  uint64_t unit_ = kBlockBytes;
  uint64_t request_bytes_ = 0;

  std::deque<Range> ranges_;  // known data that has not been requested
  uint64_t asked_ = 0;        // up to here the server has told
  uint64_t questions_ = 0;    // how often it was asked
  uint64_t data_end_ = 0;     // the end of the last range

  std::chrono::nanoseconds waited_{};  // for the server, since it last made good progress
  uint64_t answered_bytes_ = 0;        // of the disk meanwhile

  // The end of each member but the first needs the one before it: the connection is taken leave of
  // before its server is killed, and requests on the way write to the slots.
  std::optional<QemuNbd> server_;
  std::vector<Slot> slots_;
  Question question_;
  std::unique_ptr<nbd_handle, Close> nbd_;
};

}  // namespace

std::unique_ptr<ImageSource> ImageSource::open(const std::string& source,
                                               const ImageSourceOptions& options) {
  if (source.empty()) fail(EINVAL, "image", "its name is empty: give a file or an NBD URI");
  return std::make_unique<NbdSource>(source, options);
}

}  // namespace tplstore
