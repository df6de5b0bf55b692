// What the exports "vm1" and "vm1@3" serve. Thread safety and errors: see disk.h.
#pragma once

#include <memory>

#include "disk.h"
#include "volume_registry.h"

namespace tplstore {

// The current version of a volume, for one connection of its writer.
class CurrentDisk final : public Disk {
 public:
  CurrentDisk(std::unique_ptr<VolumeRegistry::Attachment> attachment, bool allows_multi_conn)
      : attachment_(std::move(attachment)),
        volume_(attachment_->volume()),
        allows_multi_conn_(allows_multi_conn) {}

  uint64_t size_bytes() const override { return volume_.size_bytes(); }
  bool is_writable() const override { return true; }
  bool allows_multi_conn() const override { return allows_multi_conn_; }
  void read(uint64_t offset, MutableBytes into) override { volume_.read(0, offset, into); }
  void extents(uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add) override {
    volume_.extents(0, offset, length, add);
  }
  void write(uint64_t offset, Bytes from, bool durable) override {
    volume_.write(offset, from, durable);
  }
  void trim(uint64_t offset, uint64_t length, bool durable) override {
    volume_.trim(offset, length, durable);
  }
  void zero(uint64_t offset, uint64_t length, bool durable) override {
    volume_.zero(offset, length, durable);
  }
  void flush() override { volume_.flush(); }
  void cache(uint64_t offset, uint64_t length) override { volume_.cache(0, offset, length); }

 private:
  const std::unique_ptr<VolumeRegistry::Attachment> attachment_;
  Volume& volume_;
  const bool allows_multi_conn_;
};

// A frozen version.
class VersionDisk final : public Disk {
 public:
  VersionDisk(std::shared_ptr<Volume> volume, const VersionInfo& version)
      : volume_(std::move(volume)), number_(version.number), size_bytes_(version.size_bytes) {}

  uint64_t size_bytes() const override { return size_bytes_; }
  bool is_writable() const override { return false; }
  bool allows_multi_conn() const override { return true; }
  void read(uint64_t offset, MutableBytes into) override { volume_->read(number_, offset, into); }
  void extents(uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add) override {
    volume_->extents(number_, offset, length, add);
  }
  void write(uint64_t, Bytes, bool) override { refuse(); }
  void trim(uint64_t, uint64_t, bool) override { refuse(); }
  void zero(uint64_t, uint64_t, bool) override { refuse(); }
  void flush() override {}
  void cache(uint64_t offset, uint64_t length) override { volume_->cache(number_, offset, length); }

 private:
  [[noreturn]] void refuse() const {
    fail(EROFS, fmt::format("{}@{}", volume_->name(), number_), "a frozen version never changes");
  }

  const std::shared_ptr<Volume> volume_;
  const uint32_t number_;
  const uint64_t size_bytes_;
};

}  // namespace tplstore
