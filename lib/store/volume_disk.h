// What the exports "vm1", "vm1@current", "vm1@3" and "vm1@3..5" serve. Thread safety and errors:
// see base/disk.h.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>

#include "base/disk.h"
#include "store/volume_registry.h"

namespace tplstore {

// The current version of a volume, for one connection of its writer, or of the VM that it is about
// to be handed to.
class CurrentDisk final : public Disk {
 public:
  CurrentDisk(std::unique_ptr<VolumeRegistry::Attachment> attachment, bool allows_multi_conn,
              std::unique_ptr<ReadFollower> follower = nullptr)
      : attachment_(std::move(attachment)),
        volume_(attachment_->volume()),
        allows_multi_conn_(allows_multi_conn),
        follower_(std::move(follower)) {}

  uint64_t size_bytes() const override { return volume_.size_bytes(); }
  bool is_writable() const override { return true; }
  bool allows_multi_conn() const override { return allows_multi_conn_; }
  // All throw ESHUTDOWN when the connection has lost the volume. Changes of one that stands by wait
  // for what becomes of that.
  void read(uint64_t offset, MutableBytes into) override {
    right().check_read();
    volume_.read(0, offset, into, follower_.get());
  }
  void extents(uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add) override {
    right().check_read();
    volume_.extents(0, offset, length, add);
  }
  void write(uint64_t offset, Bytes from, bool durable) override {
    volume_.write(offset, from, durable, changing());
  }
  void trim(uint64_t offset, uint64_t length, bool durable) override {
    volume_.trim(offset, length, durable, changing());
  }
  void zero(uint64_t offset, uint64_t length, bool durable) override {
    volume_.zero(offset, length, durable, changing());
  }
  void flush() override {
    right().check_read();
    volume_.flush();
  }
  void cache(uint64_t offset, uint64_t length) override {
    right().check_read();
    volume_.cache(0, offset, length);
  }

 private:
  const Volume::Right& right() const { return attachment_->right(); }
  // What must wait for the right does before it counts as a change.
  const Volume::Right& changing() const {
    if (!right().has()) [[unlikely]]
      right().await();
    return right();
  }

  const std::unique_ptr<VolumeRegistry::Attachment> attachment_;
  Volume& volume_;
  const bool allows_multi_conn_;
  const std::unique_ptr<ReadFollower> follower_;  // or none
};

// A frozen version that cannot be removed as long as this is there.
struct HeldVersion {
  std::shared_ptr<Volume> volume;
  VersionInfo version;
  std::unique_ptr<HeldLock> hold;
};

// A disk that never changes.
class FrozenDisk : public Disk {
 public:
  bool is_writable() const override { return false; }
  bool allows_multi_conn() const override { return true; }
  void write(uint64_t, Bytes, bool) override { refuse(); }
  void trim(uint64_t, uint64_t, bool) override { refuse(); }
  void zero(uint64_t, uint64_t, bool) override { refuse(); }
  void flush() override {}

 protected:
  virtual std::string name() const = 0;

 private:
  [[noreturn]] void refuse() const { fail(EROFS, name(), "is for reading only"); }
};

// A frozen version.
class VersionDisk final : public FrozenDisk {
 public:
  explicit VersionDisk(HeldVersion version)
      : held_(std::move(version)), number_(held_.version.number) {}

  uint64_t size_bytes() const override { return held_.version.size_bytes; }
  void read(uint64_t offset, MutableBytes into) override {
    held_.volume->read(number_, offset, into);
  }
  void extents(uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add) override {
    held_.volume->extents(number_, offset, length, add);
  }
  void cache(uint64_t offset, uint64_t length) override {
    held_.volume->cache(number_, offset, length);
  }

 private:
  std::string name() const override { return fmt::format("{}@{}", held_.volume->name(), number_); }

  const HeldVersion held_;
  const uint32_t number_;
};

// The current version of a volume, for one who reads it: a version is frozen at the first request
// that looks at its content, and gone with the connection. Up to then this costs nothing.
class CurrentReaderDisk final : public FrozenDisk {
 public:
  // `freeze` may throw; then the next request tries again.
  CurrentReaderDisk(std::string volume, uint64_t size_bytes, std::function<HeldVersion()> freeze)
      : volume_(std::move(volume)), size_bytes_(size_bytes), freeze_(std::move(freeze)) {}

  uint64_t size_bytes() const override { return size_bytes_; }
  // Each connection would see another moment.
  bool allows_multi_conn() const override { return false; }
  void read(uint64_t offset, MutableBytes into) override { frozen().read(offset, into); }
  void extents(uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add) override {
    frozen().extents(offset, length, add);
  }
  void cache(uint64_t offset, uint64_t length) override { frozen().cache(offset, length); }

 private:
  std::string name() const override { return fmt::format("{}@current", volume_); }
  VersionDisk& frozen();

  const std::string volume_;
  const uint64_t size_bytes_;
  const std::function<HeldVersion()> freeze_;
  std::mutex mutex_;  // held while freezing
  std::unique_ptr<VersionDisk> version_;
  std::atomic<VersionDisk*> frozen_{nullptr};
};

// What changed between two frozen versions, or since the template: the later one's bytes where they
// differ, as data, even if they are zeroes; all else is a hole.
class ChangesDisk final : public FrozenDisk {
 public:
  // Without `since`: what the volume has that it did not begin with.
  ChangesDisk(std::optional<HeldVersion> since, HeldVersion version)
      : since_(std::move(since)),
        since_number_(since_ ? since_->version.number : kBeforeFirstVersion),
        version_(std::move(version)) {}

  uint64_t size_bytes() const override { return version_.version.size_bytes; }
  void read(uint64_t offset, MutableBytes into) override;
  void extents(uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add) override;
  void cache(uint64_t, uint64_t) override {}

 private:
  std::string name() const override {
    if (!since_)
      return fmt::format("{}@{} since its template", version_.volume->name(),
                         version_.version.number);
    return fmt::format("{}@{}..{}", version_.volume->name(), since_number_,
                       version_.version.number);
  }
  void changes(uint64_t offset, uint64_t length,
               const std::function<void(const ChangedRange&)>& add) {
    version_.volume->changes(since_number_, version_.version.number, offset, length, add);
  }

  const std::optional<HeldVersion> since_;
  const uint32_t since_number_;
  const HeldVersion version_;
};

}  // namespace tplstore
