// A backend in front of another one that the test keeps: for handing a backend to a Store while
// still reaching it, and for doing something at the moment when an object is read, written,
// locked or removed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "backend.h"

namespace tplstore {

class ForwardingBackend final : public Backend {
 public:
  explicit ForwardingBackend(Backend& to) : to_(to) {}

  // Called with an object's name before it is read. Not to be changed while others read.
  std::function<void(const std::string& name)> on_read;
  // Likewise, before it is written.
  std::function<void(const std::string& name)> on_write;
  // Likewise, before a hole is punched in it.
  std::function<void(const std::string& name)> on_punch;
  // Likewise, after it was synced.
  std::function<void(const std::string& name)> on_synced;
  // Called with an object's name after somebody tried to lock it, and whether that got the lock.
  std::function<void(const std::string& name, bool is_ours)> on_lock;
  // Called with the name of an object or a folder after it was removed.
  std::function<void(const std::string& name)> on_remove;

  std::unique_ptr<Object> open(const std::string& name, Access access) override {
    return std::make_unique<Hooked>(*this, name, to_.open(name, access));
  }
  std::unique_ptr<Object> create(const std::string& name, uint64_t size_bytes) override {
    return std::make_unique<Hooked>(*this, name, to_.create(name, size_bytes));
  }
  void read_batch(std::span<const ReadPiece> pieces) override {
    for (const ReadPiece& piece : pieces) piece.object->read(piece.offset, piece.into);
  }
  void write_batch(std::span<const WritePiece> pieces) override {
    for (const WritePiece& piece : pieces) piece.object->write(piece.offset, piece.from);
  }
  bool put_new(const std::string& name, Bytes content) override {
    return to_.put_new(name, content);
  }
  std::optional<ByteVector> get(const std::string& name, uint64_t max_bytes) override {
    return to_.get(name, max_bytes);
  }
  std::vector<std::string> list(const std::string& folder) override { return to_.list(folder); }
  bool remove(const std::string& name) override {
    const bool is_gone = to_.remove(name);
    if (on_remove) on_remove(name);
    return is_gone;
  }
  void remove_folder(const std::string& folder) override {
    to_.remove_folder(folder);
    if (on_remove) on_remove(folder);
  }
  void sync_folder(const std::string& folder) override { to_.sync_folder(folder); }
  using Backend::try_lock;
  std::unique_ptr<HeldLock> try_lock(const std::string& name, LockMode mode,
                                     uint64_t slot) override {
    auto lock = to_.try_lock(name, mode, slot);
    if (on_lock) on_lock(name, lock != nullptr);
    return lock;
  }
  bool is_locked(const std::string& name) override { return to_.is_locked(name); }
  uint32_t write_alignment_bytes() const override { return to_.write_alignment_bytes(); }
  std::string describe() const override { return to_.describe(); }

 private:
  class Hooked final : public Object {
   public:
    Hooked(ForwardingBackend& backend, std::string name, std::unique_ptr<Object> to)
        : backend_(backend), name_(std::move(name)), to_(std::move(to)) {}
    void read(uint64_t offset, MutableBytes into) override {
      if (backend_.on_read) backend_.on_read(name_);
      to_->read(offset, into);
    }
    void write(uint64_t offset, Bytes from) override {
      if (backend_.on_write) backend_.on_write(name_);
      to_->write(offset, from);
    }
    void punch(uint64_t offset, uint64_t length) override {
      if (backend_.on_punch) backend_.on_punch(name_);
      to_->punch(offset, length);
    }
    void stretch(uint64_t size_bytes) override { to_->stretch(size_bytes); }
    void sync() override {
      to_->sync();
      if (backend_.on_synced) backend_.on_synced(name_);
    }
    void drop_cached() override { to_->drop_cached(); }
    uint64_t size_bytes() override { return to_->size_bytes(); }
    uint64_t allocated_bytes() override { return to_->allocated_bytes(); }
    std::optional<DataRange> find_data(uint64_t offset) override { return to_->find_data(offset); }

   private:
    ForwardingBackend& backend_;
    const std::string name_;
    const std::unique_ptr<Object> to_;
  };

  Backend& to_;
};

}  // namespace tplstore
