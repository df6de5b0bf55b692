// A disk for tests of the boot cache: blocks of a template in segments, some of them in a frozen
// version's data file, and who reads it as a guest does. Header only; each test's.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "boot/boot_disk.h"
#include "boot/cell_memory.h"
#include "memory/memory_backend.h"
#include "template_testing.h"

namespace tplstore::testing {

// What block b of source s holds. Cheap to make.
inline ByteVector cell_of(uint32_t source, uint64_t block) {
  ByteVector bytes(kBlockBytes, static_cast<std::byte>(block % 251 + 1));
  std::memcpy(bytes.data(), &block, sizeof block);
  std::memcpy(bytes.data() + 8, &source, sizeof source);
  return bytes;
}

inline bool is_cell(Bytes bytes, uint32_t source, uint64_t block) {
  return std::memcmp(bytes.data(), &block, sizeof block) == 0 &&
         std::memcmp(bytes.data() + 8, &source, sizeof source) == 0 &&
         bytes[12] == static_cast<std::byte>(block % 251 + 1) &&
         std::memcmp(bytes.data() + 12, bytes.data() + 13, kBlockBytes - 13) == 0;
}

// One segment, or one data file: cell i is block first + i of the disk.
class TestFile final : public CellSource {
 public:
  TestFile(MemoryBackend& backend, const std::string& name, uint32_t source, uint64_t first,
           uint32_t count)
      : source_(source), first_(first) {
    ByteVector content;
    for (uint32_t i = 0; i < count; ++i) {
      const ByteVector cell = cell_of(source, first + i);
      content.insert(content.end(), cell.begin(), cell.end());
    }
    backend.set_content(name, content);
    object_ = backend.open(name, Access::kRead, Purpose::kData);
  }

  void plan_stored(uint64_t offset, MutableBytes into, ReadPlan& plan) override {
    planned_bytes += into.size();
    plan.add(*object_, offset, into);
  }
  bool are_sound(uint32_t first, Bytes blocks) override {
    ++asked;
    for (uint32_t i = 0; i < blocks.size() / kBlockBytes; ++i)
      if (!is_cell(blocks.subspan(uint64_t{i} * kBlockBytes, kBlockBytes), source_,
                   first_ + first + i))
        return false;
    return true;
  }
  bool read_sound(uint32_t block, MutableBytes) override {
    fail(EIO, "cell", "{} is damaged", block);
  }

  std::atomic<uint64_t> planned_bytes{0};
  std::atomic<uint64_t> asked{0};  // whether blocks are sound

 private:
  const uint32_t source_;
  const uint64_t first_;
  std::unique_ptr<Object> object_;
};

// The template's segments, which its disks share.
struct TestTemplate {
  static constexpr uint32_t kSegments = 8;
  static constexpr uint64_t kBytes = kSegments * kRegionBytes;

  explicit TestTemplate(MemoryBackend& backend) {
    for (uint32_t i = 0; i < kSegments; ++i)
      files.push_back(std::make_unique<TestFile>(backend, segment_name(i), kFromTemplate,
                                                 uint64_t{i} * kRegionBlocks, kRegionBlocks));
  }
  static std::string segment_name(uint32_t i) { return fmt::format("segments/test{}", i); }
  static CellFileKey key(uint32_t i) { return CellFileKey::of_segment({7, i + 1}, kRegionBlocks); }
  uint64_t planned_bytes() const {
    uint64_t sum = 0;
    for (const auto& file : files) sum += file->planned_bytes;
    return sum;
  }

  uint64_t asked() const {
    uint64_t sum = 0;
    for (const auto& file : files) sum += file->asked;
    return sum;
  }

  // It has none, unless a test says so.
  bool is_hole(uint64_t block) const { return block - hole_first < hole_count; }
  uint64_t hole_first = 0;
  uint64_t hole_count = 0;

  Uuid uuid = random_uuid();
  std::vector<std::unique_ptr<TestFile>> files;
  std::atomic<uint64_t> dropped_blocks{0};  // from the caches of the storage
};

class TestDisk final : public BootDisk {
 public:
  // With a store that has it, as far as profiles look.
  TestDisk(MemoryBackend& store, TestTemplate& from, CellMemory& memory, std::string name,
           bool is_template = false)
      : store_(store),
        template_(from),
        memory_(memory),
        name_(std::move(name)),
        uuid_(is_template ? Uuid{} : random_uuid()) {
    if (!is_template)
      store.set_content(fmt::format("volumes/{}/header", uuid_.text()), as_bytes("header"));
    for (uint32_t i = 0; i < TestTemplate::kSegments; ++i)
      segments_.push_back(memory.file(TestTemplate::key(i)));
  }

  const std::string& name() const override { return name_; }
  Uuid volume() const override { return uuid_; }
  std::optional<Uuid> template_uuid() const override { return template_.uuid; }
  std::span<const BootAncestor> ancestors() const override { return ancestors_; }
  void settle() override { ++settled; }
  uint64_t size_bytes() const override { return TestTemplate::kBytes; }
  bool is_gone() const override { return is_gone_; }
  std::shared_ptr<BootDisk> open_template() override {
    if (uuid_.is_nil()) return nullptr;
    return std::make_shared<TestDisk>(store_, template_, memory_, "origin", true);
  }
  void take_tables() override { ++asked_for_tables; }
  void drop_cached(std::span<const CellRun> runs) override {
    if (is_gone_) fail(ESHUTDOWN, name_, "is gone");
    for (const CellRun& run : runs) template_.dropped_blocks += run.count;
  }
  void with_cells(std::span<const CellRun> runs,
                  const std::function<void(std::span<const CellPlace>)>& body) override {
    if (is_gone_) fail(ESHUTDOWN, name_, "is gone");
    on_with_cells();
    const std::lock_guard guard(mutex_);
    std::vector<CellPlace> places;
    for (size_t i = 0; i < runs.size(); ++i)
      for (uint32_t at = 0; at < runs[i].count; ++at) {
        const uint64_t block = runs[i].first + at;
        if (block >= TestTemplate::kBytes / kBlockBytes || source_of(block) != runs[i].source ||
            template_.is_hole(block))
          continue;
        CellPlace place = place_of(block);
        place.run = i;
        if (!places.empty() && places.back().run == i && places.back().file == place.file &&
            places.back().block + places.back().count == place.block)
          ++places.back().count;
        else
          places.push_back(place);
      }
    body(places);
  }

  // From now on these are what a frozen version has written.
  void write_version(MemoryBackend& backend, uint32_t version, uint64_t first, uint32_t count) {
    const std::lock_guard guard(mutex_);
    version_first_ = first;
    version_count_ = count;
    version_ = version;
    version_of_ = uuid_;
    version_file_ = std::make_shared<TestFile>(
        backend, fmt::format("volumes/{}/data.{}", uuid_.text(), version), version, first, count);
    version_cells_ = memory_.file(CellFileKey::of_version(uuid_, version));
  }
  // And these are what an ancestor's version has, which has them in its own file.
  void become_fork_of(const TestDisk& parent) {
    const std::lock_guard guard(mutex_);
    version_first_ = parent.version_first_;
    version_count_ = parent.version_count_;
    version_ = parent.version_;
    version_file_ = parent.version_file_;
    version_cells_ = parent.version_cells_;
    version_of_ = parent.uuid_;
    ancestors_.push_back({parent.uuid_, parent.version_});
  }
  // One that is nearer.
  void add_ancestor(const BootAncestor& ancestor) {
    ancestors_.insert(ancestors_.begin(), ancestor);
  }
  uint64_t own_bytes() const { return version_file_->planned_bytes; }  // that were read of it
  void go() { is_gone_ = true; }

  // A read of a guest: right, or it fails the test.
  void read(ReadFollower& follower, uint64_t first, uint32_t count) {
    ByteVector into(uint64_t{count} * kBlockBytes);
    {
      ReadPlan plan;
      CellWindow* window = follower.begin_read(first * kBlockBytes, into.size(), plan);
      for (uint32_t i = 0; i < count; ++i) {
        const CellPlace place = place_of(first + i);
        if (window != nullptr) follower.touch(*window, source_of(first + i), first + i, 1);
        if (template_.is_hole(first + i)) continue;
        place.file->plan_read(*place.source, uint64_t{place.block} * kBlockBytes,
                              MutableBytes(into).subspan(uint64_t{i} * kBlockBytes, kBlockBytes),
                              plan, window);
      }
      plan.run();
    }
    uint32_t right = 0;
    for (uint32_t i = 0; i < count; ++i)
      right += template_.is_hole(first + i) ||
               is_cell(Bytes(into).subspan(uint64_t{i} * kBlockBytes, kBlockBytes),
                       source_of(first + i), first + i);
    REQUIRE(right == count);
  }

  std::function<void()> on_with_cells = [] {};
  std::atomic<int> asked_for_tables{0};
  std::atomic<int> settled{0};

 private:
  uint32_t source_of(uint64_t block) const {
    return block - version_first_ < version_count_ ? version_ : kFromTemplate;
  }
  CellPlace place_of(uint64_t block) const {
    if (source_of(block) != kFromTemplate)
      return {version_cells_,
              version_file_.get(),
              CellFileKey::of_version(version_of_, version_),
              static_cast<uint32_t>(block - version_first_),
              1,
              0,
              block};
    const auto segment = static_cast<uint32_t>(block / kRegionBlocks);
    return {segments_[segment],
            template_.files[segment].get(),
            TestTemplate::key(segment),
            static_cast<uint32_t>(block % kRegionBlocks),
            1,
            0,
            block};
  }

  MemoryBackend& store_;
  TestTemplate& template_;
  CellMemory& memory_;
  const std::string name_;
  const Uuid uuid_;
  std::vector<std::shared_ptr<CellFile>> segments_;
  std::atomic<bool> is_gone_{false};
  std::mutex mutex_;
  uint64_t version_first_ = 0;
  uint32_t version_count_ = 0;
  uint32_t version_ = 0;
  Uuid version_of_;
  std::shared_ptr<TestFile> version_file_;
  std::shared_ptr<CellFile> version_cells_;
  std::vector<BootAncestor> ancestors_;
};

}  // namespace tplstore::testing
