// Reads and writes wait in poll(), which signals end, before they go to a descriptor that may
// block.
#include "transfer/byte_stream.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace tplstore {
namespace {

constexpr size_t kStreamBufferBytes = size_t{1} << 20;
constexpr int kLookAgainMs = 100;
constexpr int kWindowBitsMax = 27;  // 128 MiB, what zstd(1) unpacks without being told to
constexpr size_t kFrameHeaderBytesMax = 18;
constexpr uint32_t kSkippableFrame = 0x184D2A50, kSkippableFrameMask = 0xFFFFFFF0;
constexpr std::string_view kMakeAgain = "copy it again, or make it again from its store";

void wait_for(int descriptor, short events, const std::string& name,
              const StreamInterrupted& interrupted) {
  while (true) {
    if (interrupted()) fail(EINTR, name, "interrupted");
    pollfd waiting{descriptor, events, 0};
    const int count = ::poll(&waiting, 1, kLookAgainMs);
    if (count > 0) return;
    if (count < 0 && errno != EINTR) fail_errno(errno, name, "waiting for it");
  }
}

bool begins_compressed(Bytes bytes) {
  uint32_t magic = 0;
  if (bytes.size() < sizeof magic) return false;
  std::memcpy(&magic, bytes.data(), sizeof magic);
  return magic == ZSTD_MAGICNUMBER || (magic & kSkippableFrameMask) == kSkippableFrame;
}

}  // namespace

// --- in

class ByteReader::Unpacker {
 public:
  explicit Unpacker(const std::string& name) : name_(name), context_(ZSTD_createDCtx()) {
    if (!context_) throw std::bad_alloc();
    ZSTD_DCtx_setParameter(context_.get(), ZSTD_d_windowLogMax, kWindowBitsMax);
  }

  void reset() {
    ZSTD_DCtx_reset(context_.get(), ZSTD_reset_session_only);
    is_between_frames_ = true;
  }
  bool is_between_frames() const { return is_between_frames_; }

  // Takes from `from` what it has used; the number of bytes that it made of that.
  size_t unpack(Bytes& from, MutableBytes into) {
    ZSTD_inBuffer in{from.data(), from.size(), 0};
    ZSTD_outBuffer out{into.data(), into.size(), 0};
    const size_t result = ZSTD_decompressStream(context_.get(), &out, &in);
    if (ZSTD_isError(result)) {
      if (ZSTD_getErrorCode(result) == ZSTD_error_frameParameter_windowTooLarge)
        fail(EIO, name_,
             "its compressed data need more than 128 MiB of memory: compress it with a smaller "
             "window");
      fail(EIO, name_, "damaged: its compressed data cannot be unpacked ({}); {}",
           ZSTD_getErrorName(result), kMakeAgain);
    }
    from = from.subspan(in.pos);
    is_between_frames_ = result == 0;
    return out.pos;
  }

 private:
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  const std::string& name_;
  std::unique_ptr<ZSTD_DCtx, Free> context_;
  bool is_between_frames_ = true;
};

ByteReader::ByteReader(const std::string& file, StreamInterrupted interrupted, bool unpacks)
    : name_(is_standard_stream(file) ? "standard input" : file),
      is_stream_(is_standard_stream(file)),
      interrupted_(std::move(interrupted)),
      buffer_(kStreamBufferBytes) {
  if (is_stream_) {
    descriptor_ = STDIN_FILENO;
    if (::isatty(descriptor_) == 1)
      fail(EINVAL, name_, "is a terminal: pipe what is to be read into this command");
  } else {
    // O_NONBLOCK: a named pipe must not make us wait for its writer.
    file_.reset(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file_) fail_errno(errno, name_, "opening the file");
    descriptor_ = file_.get();
  }
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) fail_errno(errno, name_, "looking at the file");
  if (S_ISREG(status.st_mode)) {
    const off_t at = is_stream_ ? ::lseek(descriptor_, 0, SEEK_CUR) : 0;
    size_bytes_ = static_cast<uint64_t>(std::max<off_t>(status.st_size - at, 0));
  } else if (!is_stream_) {
    fail(EINVAL, name_, "is not a regular file: copy it into one, or pipe it and name it -");
  }
  look_at_beginning(unpacks);
}

ByteReader::~ByteReader() = default;

// Whether what comes is compressed, and how much there is then.
void ByteReader::look_at_beginning(bool unpacks) {
  if (!unpacks) return;
  size_t count = 0;
  while (count < kFrameHeaderBytesMax) {
    const size_t more = read_some(MutableBytes(buffer_).subspan(count));
    if (more == 0) break;
    count += more;
  }
  ahead_ = Bytes(buffer_).first(count);
  if (!begins_compressed(ahead_)) return;
  unpacker_ = std::make_unique<Unpacker>(name_);
  const uint64_t size = ZSTD_getFrameContentSize(ahead_.data(), ahead_.size());
  size_bytes_.reset();
  if (size != ZSTD_CONTENTSIZE_UNKNOWN && size != ZSTD_CONTENTSIZE_ERROR && size != 0)
    size_bytes_ = size;
}

std::optional<uint64_t> ByteReader::file_bytes() const {
  return is_stream_ || is_compressed() ? std::nullopt : size_bytes_;
}

size_t ByteReader::read_some(MutableBytes into) {
  while (true) {
    if (is_stream_) wait_for(descriptor_, POLLIN, name_, interrupted_);
    const ssize_t count = ::read(descriptor_, into.data(), into.size());
    if (count >= 0) return static_cast<size_t>(count);
    if (errno != EINTR && errno != EAGAIN) fail_errno(errno, name_, "reading");
  }
}

bool ByteReader::fill() {
  if (ahead_.empty()) ahead_ = Bytes(buffer_).first(read_some(buffer_));
  return !ahead_.empty();
}

size_t ByteReader::unpack_some(MutableBytes into) {
  while (true) {
    // What it has inside comes out without more input.
    const bool is_end = !fill();
    if (is_end && unpacker_->is_between_frames()) return 0;
    const size_t count = unpacker_->unpack(ahead_, into);
    if (count > 0) return count;
    if (is_end) fail(EIO, name_, "damaged: its compressed data were cut off; {}", kMakeAgain);
    if (interrupted_()) fail(EINTR, name_, "interrupted");
  }
}

size_t ByteReader::read(MutableBytes into) {
  size_t done = 0;
  while (done < into.size()) {
    const MutableBytes rest = into.subspan(done);
    size_t count = 0;
    if (unpacker_) {
      count = unpack_some(rest);
    } else if (ahead_.empty() && rest.size() >= buffer_.size()) {
      count = read_some(rest);
    } else if (fill()) {
      count = std::min(rest.size(), ahead_.size());
      std::copy_n(ahead_.begin(), count, rest.begin());
      ahead_ = ahead_.subspan(count);
    }
    if (count == 0) break;
    done += count;
  }
  position_ += done;
  return done;
}

void ByteReader::rewind() {
  ensure(can_rewind(), "only a file is read again");
  if (::lseek(descriptor_, 0, SEEK_SET) != 0) fail_errno(errno, name_, "reading it again");
  if (unpacker_) unpacker_->reset();
  ahead_ = {};
  position_ = 0;
}

size_t ByteReader::read_at(uint64_t position, MutableBytes into) const {
  ensure(file_bytes().has_value(), "only a plain file is read anywhere");
  size_t done = 0;
  while (done < into.size()) {
    const ssize_t count = ::pread(descriptor_, into.data() + done, into.size() - done,
                                  static_cast<off_t>(position + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno(errno, name_, "reading");
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

// --- out

class ByteWriter::Packer {
 public:
  using Out = std::function<void(Bytes)>;

  Packer(const std::string& name, std::optional<uint64_t> size_bytes)
      : name_(name), context_(ZSTD_createCCtx()), buffer_(ZSTD_CStreamOutSize()) {
    if (!context_) throw std::bad_alloc();
    set(ZSTD_c_checksumFlag, 1);
    if (size_bytes) check(ZSTD_CCtx_setPledgedSrcSize(context_.get(), *size_bytes));
  }

  void pack(Bytes bytes, const Out& out) { run(bytes, ZSTD_e_continue, out); }
  void finish(const Out& out) { run({}, ZSTD_e_end, out); }

 private:
  struct Free {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  };

  size_t check(size_t result) {
    if (ZSTD_isError(result))
      fail(EIO, name_, "cannot be compressed: {}", ZSTD_getErrorName(result));
    return result;
  }
  void set(ZSTD_cParameter parameter, int value) {
    check(ZSTD_CCtx_setParameter(context_.get(), parameter, value));
  }

  void run(Bytes bytes, ZSTD_EndDirective directive, const Out& out) {
    ZSTD_inBuffer from{bytes.data(), bytes.size(), 0};
    bool is_done = false;
    while (!is_done) {
      ZSTD_outBuffer into{buffer_.data(), buffer_.size(), 0};
      const size_t left = check(ZSTD_compressStream2(context_.get(), &into, &from, directive));
      if (into.pos > 0) out(Bytes(buffer_).first(into.pos));
      is_done = directive == ZSTD_e_end ? left == 0 : from.pos == from.size;
    }
  }

  const std::string& name_;
  std::unique_ptr<ZSTD_CCtx, Free> context_;
  ByteVector buffer_;
};

ByteWriter::ByteWriter(int descriptor, std::string name, Compression compression,
                       std::optional<uint64_t> size_bytes, StreamInterrupted interrupted)
    : descriptor_(descriptor), name_(std::move(name)), interrupted_(std::move(interrupted)) {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) fail_errno(errno, name_, "looking at it");
  // A pipe that can be written to takes so much without waiting, and more would wait in write().
  bytes_at_once_ = S_ISREG(status.st_mode) ? SIZE_MAX : PIPE_BUF;
  if (compression == Compression::kZstd) packer_ = std::make_unique<Packer>(name_, size_bytes);
}

ByteWriter::~ByteWriter() = default;

void ByteWriter::append(Bytes bytes) {
  if (packer_) return packer_->pack(bytes, [this](Bytes packed) { write_out(packed); });
  if (buffer_.empty() && bytes.size() >= kStreamBufferBytes) return write_out(bytes);
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  if (buffer_.size() < kStreamBufferBytes) return;
  write_out(buffer_);
  buffer_.clear();
}

void ByteWriter::finish() {
  if (packer_) packer_->finish([this](Bytes packed) { write_out(packed); });
  write_out(buffer_);
  buffer_.clear();
  // A pipe cannot be synced, and what says so is no failure of a disk.
  if (::fsync(descriptor_) != 0 && errno != EINVAL && errno != EROFS)
    fail_errno(errno, name_, "syncing");
}

void ByteWriter::write_out(Bytes bytes) {
  while (!bytes.empty()) {
    wait_for(descriptor_, POLLOUT, name_, interrupted_);
    const size_t at_once = std::min(bytes.size(), bytes_at_once_);
    const ssize_t count = ::write(descriptor_, bytes.data(), at_once);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count < 0 && errno == EPIPE)
      fail(EPIPE, name_, "whoever reads it has gone before all was written");
    if (count < 0) fail_errno(errno, name_, "writing");
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

}  // namespace tplstore
