// What the tests of the tier share: a store with a template, disks in memory on which directories
// are, and a clock that the test moves. Header only; each test's.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "forwarding_backend.h"
#include "memory/memory_backend.h"
#include "template_testing.h"
#include "tier/tier.h"
#include "tier/tier_identity.h"

namespace tplstore::testing {

inline constexpr int64_t kSecond = 1'000'000'000;

// What is found at one path. It may be exchanged for something else, as mounting does it.
struct TierDisk {
  std::shared_ptr<MemoryBackend> memory = std::make_shared<MemoryBackend>();
  bool is_missing = false;
  // Around every call, of whatever was opened here.
  std::function<void(ForwardingBackend::Call, const std::string& name,
                     const std::function<void()>& go_on)>
      around;
};

struct TierFixture {
  MemoryBackend store;
  std::atomic<int64_t> now_ns{1000 * kSecond};
  std::map<std::string, TierDisk> disks;
  std::vector<std::string> log;
  std::vector<Hash128> looked_again;
  TierTable table;
  TierOptions options;
  std::vector<ManifestSegment> segments;  // of the template "a"

  // `segment_count` segments of two blocks.
  explicit TierFixture(uint64_t segment_count = 8) {
    make_store(store);
    std::vector<uint64_t> numbers;
    for (uint64_t i = 0; i < 2 * segment_count; ++i) numbers.push_back(i + 1);
    make_template(store, "a", numbers, numbers.size() * kBlockBytes, 2);
    segments = load_manifest(store, "a")->segments;
    options.store = options.origin = &store;
    options.identity = load_identity(store);
    options.host.host_id = random_uuid();
    options.host.boot_id = random_uuid();
    options.open_directory = [this](const std::string& path) { return open(path); };
    options.log = [this](const std::string& line) { log.push_back(line); };
    options.look_again = [this](const Hash128& name) { looked_again.push_back(name); };
    options.clock = [this] { return now_ns.load(); };
    options.fill_bytes_per_second = uint64_t{1} << 62;
  }

  std::unique_ptr<Backend> open(const std::string& path) {
    TierDisk& disk = disks[path];
    if (disk.is_missing) fail_errno(ENOENT, path, "opening the directory");
    // What is open stays that, whatever is at the path later.
    auto backend = std::make_unique<ForwardingBackend>(*disk.memory);
    backend->around = [&disk, memory = disk.memory](auto call, const std::string& name,
                                                    const std::function<void()>& go_on) {
      disk.around ? disk.around(call, name, go_on) : go_on();
    };
    backend->in_place = [&disk, memory = disk.memory] {
      return !disk.is_missing && disk.memory == memory;
    };
    return backend;
  }

  // Makes a directory of this host's tier, and its entry in the table.
  TierEntry add_directory(const std::string& path, uint64_t weight_bytes = uint64_t{1} << 30,
                          TierEntry::Kind kind = TierEntry::Kind::kSsd) {
    MemoryBackend& memory = *disks[path].memory;
    memory.set_recording(false);
    put_new_tier_identity(memory, options.identity.uuid, options.host.host_id, random_uuid());
    const TierEntry entry{load_tier_identity(memory)->directory, path, weight_bytes, kind, false};
    table.add(entry);
    ++table.generation;
    return entry;
  }
  std::shared_ptr<const TierTable> shared_table() const {
    return std::make_shared<const TierTable>(table);
  }

  ByteVector content_of(const Hash128& name) const { return store.content(segment_path(name)); }
  bool is_copied(const std::string& path, const Hash128& name) {
    return disks[path].memory->get(segment_path(name), kSegmentBytesMax).has_value();
  }
  void put_copy(const std::string& path, const Hash128& name, Bytes content) {
    disks[path].memory->set_content(segment_path(name), content);
  }
};

// Reads block 0 of a copy as the block source does; whether it was right.
inline bool read_copy(SegmentCopy& copy, const HashSecret& secret) {
  using Outcome = SegmentCopy::Outcome;
  if (!copy.begin()) return false;
  ByteVector block(kBlockBytes);
  try {
    copy.object().read(0, block);
  } catch (const Error&) {
    copy.end(Outcome::kFailed, block.size(), std::current_exception());
    return false;
  }
  const bool is_right = content_hash(block, secret) == copy.table().at(0);
  copy.end(is_right ? Outcome::kRead : Outcome::kDamaged, block.size(), {});
  return is_right;
}

}  // namespace tplstore::testing
