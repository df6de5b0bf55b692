// Journals in memory that a test keeps: what is left of them when a process dies, or a host.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "map/update_journal.h"

namespace tplstore {

class MemoryJournals final : public JournalPlace {
 public:
  explicit MemoryJournals(uint64_t ring_bytes = 64 << 10) : ring_bytes_(ring_bytes) {}

  // What a process leaves that dies now.
  std::unique_ptr<MemoryJournals> left() const {
    const std::lock_guard guard(mutex_);
    auto left = std::make_unique<MemoryJournals>(ring_bytes_);
    left->boot_ = boot_;
    for (const auto& [path, words] : journals_)
      left->journals_[path] = std::make_shared<Words>(*words);
    return left;
  }
  // The host restarts; on some the files are still there.
  void reboot(bool keeps_files) {
    boot_ = random_uuid();
    if (!keeps_files) journals_.clear();
  }

  Uuid boot() const override { return boot_; }
  bool is_servers() const override { return is_server; }
  std::unique_ptr<JournalMemory> create(const Uuid& volume, const Uuid& id,
                                        std::string& path) override {
    if (is_full) return nullptr;
    const std::lock_guard guard(mutex_);
    path = prefix_of(volume) + id.text();
    journals_[path] = std::make_shared<Words>((kJournalHeaderBytes + ring_bytes_) / 8);
    return std::make_unique<Memory>(journals_[path]);
  }
  std::unique_ptr<JournalMemory> open(const std::string& path) override {
    const std::lock_guard guard(mutex_);
    const auto found = journals_.find(path);
    if (found == journals_.end()) return nullptr;
    return std::make_unique<Memory>(found->second);
  }
  void remove(const std::string& path) noexcept override {
    const std::lock_guard guard(mutex_);
    journals_.erase(path);
  }
  void remove_others(const Uuid& volume, const std::string& kept) noexcept override {
    const std::lock_guard guard(mutex_);
    std::erase_if(journals_, [&](const auto& journal) {
      return journal.first != kept && journal.first.starts_with(prefix_of(volume));
    });
  }

  std::vector<std::string> paths() const {
    std::vector<std::string> paths;
    for (const auto& [path, words] : journals_) paths.push_back(path);
    return paths;
  }
  MutableBytes bytes_of(const std::string& path) { return bytes_in(*journals_.at(path)); }
  void clear() { journals_.clear(); }

  bool is_server = true;
  bool is_full = false;

 private:
  using Words = std::vector<uint64_t>;
  struct Memory final : JournalMemory {
    explicit Memory(std::shared_ptr<Words> of) : words(std::move(of)) {}
    MutableBytes bytes() override { return bytes_in(*words); }
    const std::shared_ptr<Words> words;
  };
  static MutableBytes bytes_in(Words& words) { return std::as_writable_bytes(std::span(words)); }
  static std::string prefix_of(const Uuid& volume) { return "/run/test/" + volume.text() + "."; }

  const uint64_t ring_bytes_;
  Uuid boot_ = random_uuid();
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Words>> journals_;
};

}  // namespace tplstore
