// Raw files are written in place, streams with all their zeroes; qcow2 goes to a qemu-nbd over a
// socket, several writes at a time.
#include "image_sink.h"

#include <libnbd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <vector>

#include "base/error.h"
#include "transfer/child_process.h"
#include "transfer/qemu_nbd.h"

namespace tplstore::tool {
namespace {

class RawSink final : public ImageSink {
 public:
  RawSink(int descriptor, uint64_t size_bytes, std::string file)
      : file_(std::move(file)), descriptor_(descriptor), buffer_(kSinkBufferBytes) {
    if (::ftruncate(descriptor_, static_cast<off_t>(size_bytes)) != 0)
      fail_errno(errno, file_, "giving the file its size");
  }

  uint32_t granularity_bytes() const override { return kBlockBytes; }
  MutableBytes take_buffer() override { return buffer_; }

  void write(uint64_t offset, Bytes from) override {
    while (!from.empty()) {
      const ssize_t count =
          ::pwrite(descriptor_, from.data(), from.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail_errno(errno, file_, "writing");
      offset += static_cast<uint64_t>(count);
      from = from.subspan(static_cast<size_t>(count));
    }
  }

  void finish() override {
    if (::fsync(descriptor_) != 0) fail_errno(errno, file_, "syncing");
  }

 private:
  std::string file_;
  const int descriptor_;
  ByteVector buffer_;
};

class StreamSink final : public ImageSink {
 public:
  StreamSink(int descriptor, uint64_t size_bytes, const std::string& file, Compression compression,
             const StreamInterrupted& interrupted)
      : size_bytes_(size_bytes),
        stream_(descriptor, file, compression, size_bytes, interrupted),
        buffer_(kSinkBufferBytes),
        zeroes_(kSinkBufferBytes) {}

  uint32_t granularity_bytes() const override { return kBlockBytes; }
  MutableBytes take_buffer() override { return buffer_; }

  void write(uint64_t offset, Bytes from) override {
    write_zeroes_up_to(offset);
    stream_.append(from);
    position_ += from.size();
  }

  void finish() override {
    write_zeroes_up_to(size_bytes_);
    stream_.finish();
  }

 private:
  void write_zeroes_up_to(uint64_t offset) {
    ensure(offset >= position_, "a stream is written from its beginning to its end");
    while (position_ < offset) {
      const uint64_t count = std::min<uint64_t>(offset - position_, zeroes_.size());
      stream_.append(Bytes(zeroes_).first(count));
      position_ += count;
    }
  }

  const uint64_t size_bytes_;
  ByteWriter stream_;
  ByteVector buffer_;
  const ByteVector zeroes_;
  uint64_t position_ = 0;
};

// Several writes are in flight to a private qemu-nbd, which ends with the connection.
class Qcow2Sink final : public ImageSink {
 public:
  Qcow2Sink(int descriptor, uint64_t size_bytes, std::string file) : file_(std::move(file)) {
    const ProcessResult made = run_process(
        {"qemu-img", "create", "-q", "-f", "qcow2", descriptor_path(3), std::to_string(size_bytes)},
        kQemuPackage, [](std::string_view) {}, {}, {descriptor});
    if (made.exit_status != 0) fail(EIO, file_, "qemu-img cannot make it: {}", made.errors);
    nbd_.reset(nbd_create());
    if (!nbd_) fail(ENOMEM, file_, "cannot make an NBD handle: {}", nbd_get_error());
    server_.emplace(std::vector<std::string>{"--format=qcow2", "--cache=writeback"},
                    descriptor_path(QemuNbd::kImageDescriptor), descriptor);
    if (nbd_connect_socket(nbd_.get(), server_->take_connection().release()) != 0)
      fail_nbd("starting qemu-nbd");
    for (Slot& slot : slots_) slot.buffer.resize(kSinkBufferBytes);
  }

  uint32_t granularity_bytes() const override { return 64 << 10; }  // a cluster

  MutableBytes take_buffer() override {
    while (true) {
      for (Slot& slot : slots_) {
        if (slot.writes_in_flight > 0) continue;
        taken_ = &slot;
        return slot.buffer;
      }
      wait();
    }
  }

  void write(uint64_t offset, Bytes from) override {
    ++taken_->writes_in_flight;
    const nbd_completion_callback done = {.callback =
                                              [](void* slot, int* error) {
                                                Slot& ended = *static_cast<Slot*>(slot);
                                                --ended.writes_in_flight;
                                                if (*error != 0) ended.error = *error;
                                                return 1;
                                              },
                                          .user_data = taken_,
                                          .free = nullptr};
    if (nbd_aio_pwrite(nbd_.get(), from.data(), from.size(), offset, done, 0) < 0) {
      --taken_->writes_in_flight;
      fail_nbd("writing through qemu-nbd");
    }
  }

  void finish() override {
    for (Slot& slot : slots_)
      while (slot.writes_in_flight > 0) wait();
    check();
    // The flush makes qemu write its tables, so what follows cannot lose anything.
    if (nbd_flush(nbd_.get(), 0) != 0) fail_nbd("flushing through qemu-nbd");
    if (nbd_shutdown(nbd_.get(), 0) != 0) fail_nbd("closing qemu-nbd");
    nbd_.reset();
    server_->wait();
  }

 private:
  struct Slot {
    ByteVector buffer;
    unsigned writes_in_flight = 0;
    int error = 0;
  };
  struct CloseNbd {
    void operator()(nbd_handle* handle) const { nbd_close(handle); }
  };

  void wait() {
    if (nbd_poll(nbd_.get(), -1) < 0 && nbd_get_errno() != EINTR)
      fail_nbd("writing through qemu-nbd");
    check();
  }
  void check() {
    for (const Slot& slot : slots_)
      if (slot.error == ENOTCONN)
        fail(EIO, file_, "qemu-nbd ended before all was written");
      else if (slot.error != 0)
        fail_errno(slot.error, file_, "writing");
  }
  [[noreturn]] void fail_nbd(const char* action) {
    const int code = nbd_get_errno();
    fail(code != 0 ? code : EIO, file_, "{}: {}", action, nbd_get_error());
  }

  std::string file_;
  std::array<Slot, 8> slots_;
  Slot* taken_ = nullptr;
  // An unfinished one is killed, for nobody will keep the file.
  std::optional<QemuNbd> server_;
  // Last, so that it is closed before the buffers go.
  std::unique_ptr<nbd_handle, CloseNbd> nbd_;
};

}  // namespace

std::unique_ptr<ImageSink> make_raw_sink(int descriptor, uint64_t size_bytes,
                                         const std::string& file) {
  return std::make_unique<RawSink>(descriptor, size_bytes, file);
}

std::unique_ptr<ImageSink> make_stream_sink(int descriptor, uint64_t size_bytes,
                                            const std::string& file, Compression compression,
                                            const StreamInterrupted& interrupted) {
  return std::make_unique<StreamSink>(descriptor, size_bytes, file, compression, interrupted);
}

std::unique_ptr<ImageSink> make_qcow2_sink(int descriptor, uint64_t size_bytes,
                                           const std::string& file) {
  return std::make_unique<Qcow2Sink>(descriptor, size_bytes, file);
}

}  // namespace tplstore::tool
