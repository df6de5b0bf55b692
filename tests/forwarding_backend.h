// A backend in front of another one that the test keeps: for handing a backend to a Store while
// still reaching it, for doing something at the moment when an object is read, written, locked or
// removed, and for making any call fail, before or after it has been done.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "backend/backend.h"

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
  // Called with an object's name after it was put there; what it throws, put_new() throws.
  std::function<void(const std::string& name)> on_put;
  // When set, templates' manifests are put there in steps, as a directory does it; it is called
  // when the name is given and not durable yet.
  std::function<void(const std::string& name)> on_linked;
  // Called with the name of an object or a folder after it was removed.
  std::function<void(const std::string& name)> on_remove;

  // Whether what is open is what its location leads to; when it is not set, it is.
  std::function<bool()> in_place;

  enum class Call {
    kOpen,
    kCreate,
    kRead,
    kWrite,
    kPunch,
    kGrow,
    kSync,
    kPutNew,
    kGet,
    kList,
    kRemove,
    kRemoveFolder,
    kSyncFolder,
    kLock,
  };
  // When set, does each call by calling `go_on`; or throws, before that or after it. It may set
  // itself to something else; others may not while the backend is in use.
  std::function<void(Call call, const std::string& name, const std::function<void()>& go_on)>
      around;

  std::unique_ptr<Object> open(const std::string& name, Access access, Purpose purpose) override {
    std::unique_ptr<Object> object;
    pass(Call::kOpen, name, [&] { object = to_.open(name, access, purpose); });
    return std::make_unique<Hooked>(*this, name, std::move(object));
  }
  std::unique_ptr<Object> create(const std::string& name, uint64_t size_bytes,
                                 Purpose purpose) override {
    std::unique_ptr<Object> object;
    pass(Call::kCreate, name, [&] { object = to_.create(name, size_bytes, purpose); });
    return std::make_unique<Hooked>(*this, name, std::move(object));
  }
  bool put_new(const std::string& name, Bytes content) override {
    if (on_linked && name.starts_with("templates/")) {
      const auto object = to_.create(name, 0, Purpose::kMetadata);
      object->write(0, content);
      object->sync();
      on_linked(name);
      to_.sync_folder("templates");
      return true;
    }
    bool is_new = false;
    pass(Call::kPutNew, name, [&] { is_new = to_.put_new(name, content); });
    if (on_put) on_put(name);
    return is_new;
  }
  bool put_claim(const std::string& name, Bytes content) override {
    bool is_new = false;
    pass(Call::kPutNew, name, [&] { is_new = to_.put_claim(name, content); });
    if (on_put) on_put(name);
    return is_new;
  }
  std::optional<ByteVector> get(const std::string& name, uint64_t max_bytes) override {
    std::optional<ByteVector> content;
    pass(Call::kGet, name, [&] { content = to_.get(name, max_bytes); });
    return content;
  }
  std::vector<std::string> list(const std::string& folder) override {
    std::vector<std::string> names;
    pass(Call::kList, folder, [&] { names = to_.list(folder); });
    return names;
  }
  bool remove(const std::string& name) override {
    bool was_there = false;
    pass(Call::kRemove, name, [&] { was_there = to_.remove(name); });
    if (on_remove) on_remove(name);
    return was_there;
  }
  void remove_folder(const std::string& folder) override {
    pass(Call::kRemoveFolder, folder, [&] { to_.remove_folder(folder); });
    if (on_remove) on_remove(folder);
  }
  void sync_folder(const std::string& folder) override {
    pass(Call::kSyncFolder, folder, [&] { to_.sync_folder(folder); });
  }
  using Backend::try_lock;
  std::unique_ptr<HeldLock> try_lock(const std::string& name, LockMode mode,
                                     uint64_t slot) override {
    std::unique_ptr<HeldLock> lock;
    pass(Call::kLock, name, [&] { lock = to_.try_lock(name, mode, slot); });
    if (on_lock) on_lock(name, lock != nullptr);
    return lock;
  }
  bool is_locked(const std::string& name) override { return to_.is_locked(name); }
  uint32_t write_alignment_bytes() const override { return to_.write_alignment_bytes(); }
  std::string describe() const override { return to_.describe(); }
  StorageKind kind() const override { return to_.kind(); }
  std::optional<StorageSpace> space() override { return to_.space(); }
  bool is_in_place() override { return !in_place || in_place(); }

 private:
  class Hooked final : public Object {
   public:
    Hooked(ForwardingBackend& backend, std::string name, std::unique_ptr<Object> to)
        : Object(backend), backend_(backend), name_(std::move(name)), to_(std::move(to)) {}
    void read(uint64_t offset, MutableBytes into) override {
      if (backend_.on_read) backend_.on_read(name_);
      backend_.pass(Call::kRead, name_, [&] { to_->read(offset, into); });
    }
    void write(uint64_t offset, Bytes from) override {
      if (backend_.on_write) backend_.on_write(name_);
      backend_.pass(Call::kWrite, name_, [&] { to_->write(offset, from); });
    }
    void punch(uint64_t offset, uint64_t length) override {
      if (backend_.on_punch) backend_.on_punch(name_);
      backend_.pass(Call::kPunch, name_, [&] { to_->punch(offset, length); });
    }
    void grow(uint64_t size_bytes) override {
      backend_.pass(Call::kGrow, name_, [&] { to_->grow(size_bytes); });
    }
    void sync() override {
      backend_.pass(Call::kSync, name_, [&] { to_->sync(); });
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

  void pass(Call call, const std::string& name, const std::function<void()>& go_on) {
    if (const auto hook = around) {
      hook(call, name, go_on);
    } else {
      go_on();
    }
  }

  Backend& to_;
};

}  // namespace tplstore
