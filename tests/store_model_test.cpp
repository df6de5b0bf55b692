// Random operations on several volumes of a store against a model: versions that are removed in any
// order, rollbacks, forks of forks, flattening, removal of what has forks, differences, retention,
// crashes.
//
// The model knows what each sector contains and where each block comes from. So it knows which
// cells must be allocated: exactly those that a retained version of their own volume maps to. That
// is compared with what is allocated, cell by cell, and with all the books: the own size of
// versions, the cells of each file.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "base/host.h"
#include "forwarding_backend.h"
#include "retention.h"
#include "temporary_directory.h"
#include "transfer/increment.h"
#include "volume_testing.h"

namespace tplstore::store_model_test {
namespace {

constexpr uint32_t kSectorsPerBlock = kBlockBytes / kSectorBytes;
constexpr uint64_t kDiskBytes = 3 * kRegionBytes + 40 * kBlockBytes + 3 * kSectorBytes;
constexpr uint64_t kTemplateBytes = 2 * kRegionBytes + 30 * kBlockBytes + kSectorBytes;

// Where the blocks are that the test touches: at the borders of regions and of the template.
struct Cluster {
  uint64_t first;
  uint64_t count;
};
constexpr Cluster kClusters[] = {
    {0, 24}, {kRegionBlocks - 12, 24}, {2 * kRegionBlocks + 20, 20}, {3 * kRegionBlocks + 16, 25}};

std::vector<uint64_t> touched_blocks() {
  std::vector<uint64_t> blocks;
  for (const Cluster& cluster : kClusters)
    for (uint64_t i = 0; i < cluster.count; ++i) blocks.push_back(cluster.first + i);
  return blocks;
}
const std::vector<uint64_t> kBlocks = touched_blocks();

ByteVector sector_content(uint64_t value) {
  ByteVector bytes(kSectorBytes);
  if (value == 0) return bytes;
  for (size_t i = 0; i < kSectorBytes; i += sizeof value)
    std::memcpy(bytes.data() + i, &value, sizeof value);
  return bytes;
}

// A process that is there and is not this one: who wants the volume too need not wait for its end.
Peer vm_peer() { return {"a VM", getppid(), process_start_time(getppid())}; }

// Where a block comes from.
constexpr uint32_t kFromZero = 0;
constexpr uint32_t kFromTemplate = UINT32_MAX;

struct Block {
  std::array<uint64_t, kSectorsPerBlock> sectors{};
  uint32_t source = kFromZero;
};

struct Content {
  uint64_t size_bytes = 0;
  std::vector<Block> blocks = std::vector<Block>(kBlocks.size());
};

struct Version {
  uint32_t parent = 0;
  std::string name;
  Content content;
  bool is_removed = false;
  std::shared_ptr<Disk> reader;  // of current as it was; it is hidden then as if it was removed
};

struct ModelVolume {
  std::string name;  // empty once it was removed
  Uuid uuid;
  bool has_template = false;
  // Where it was forked from; of nothing when it was not, or was flattened.
  ModelVolume* parent = nullptr;
  uint32_t parent_version = 0;
  uint32_t base = 0;  // sources up to here are in ancestors' files
  bool was_flattened = false;
  uint32_t current = 1;
  uint32_t current_parent = 0;
  Content content;
  Content flushed;
  std::map<uint32_t, Version> versions;
  // Cells of current, and of versions, that a trim has punched before its update was durable.
  std::set<uint64_t> maybe_holes;
  std::map<uint32_t, std::set<uint64_t>> maybe_holes_of;
  std::unique_ptr<Disk> disk;  // when a VM has it
};

class Model {
 public:
  // With a boot cache of so many bytes, or none.
  explicit Model(Random& random, uint64_t boot_cache_bytes = 0)
      : random_(random), boot_cache_bytes_(boot_cache_bytes) {
    backend_ = memory_store();
    backend_->set_recording(false);
    make_template();
    open_store();
  }

  void step() {
    if (store_->boot() != nullptr && random_.chance(3)) step_of_boot_cache();
    if (volumes_named() == 0 || (volumes_named() < 3 && random_.chance(60))) create_volume();
    ModelVolume& volume = pick_volume();
    switch (random_.below(64)) {
      case 0:
      case 1:
        return attach_or_detach(volume);
      case 2:
        return new_version(volume);
      case 3:
      case 4:
        return remove_versions(volume);
      case 5:
        if (random_.chance(4)) roll_back(volume);
        return;
      case 6:
        if (random_.chance(4)) fork(volume);
        return flush_all();
      case 7:
        if (random_.chance(6)) flatten(volume);
        return flush_all();
      case 8:
        if (random_.chance(12)) remove_volume(volume);
        return flush_all();
      case 9:
        return check_difference(volume);
      case 10:
        if (random_.chance(8)) crash();
        return;
      case 11:
        if (random_.chance(6)) store_->checkpoint(random_.chance(3));
        return flush_all();
      case 12:
        if (random_.chance(4)) store_->reclaim();
        return flush_all();
      case 13:
        if (random_.chance(12)) prune(volume);
        return;
      case 14:
        if (random_.chance(10)) return carry(volume);
        return check_version(volume);
      case 15:
        if (random_.chance(20)) check_space();
        return read_current(volume);
      case 16:
        if (random_.chance(20)) grow(volume);
        return;
      case 17:
      case 18:
        return flush(volume);
      default:
        break;
    }
    if (!volume.disk) return attach(volume);
    if (random_.chance(4)) {
      discard(volume);
    } else {
      write(volume);
    }
  }

  void check_all() {
    for (auto& volume : volumes_) {
      if (volume->name.empty()) continue;
      INFO("volume " << volume->name);
      if (!volume->disk) attach(*volume);
      check_content(*volume->disk, volume->content);
      for (const auto& [number, version] : volume->versions)
        if (!version.is_removed) check_version(*volume, number);
      check_readers(*volume);
    }
    check_space();
  }

  bool has_hit() const { return boot_hits_ > 0; }

  void close() {
    for (auto& volume : volumes_) {
      volume->disk.reset();
      end_readers(*volume);
    }
    store_.reset();
  }

 private:
  // --- the store

  void make_template() {
    // Data in half of the blocks; the others are holes, which a write fills as well.
    ByteVector image(kTemplateBytes);
    for (size_t i = 0; i < kBlocks.size(); ++i) {
      for (uint32_t s = 0; s < kSectorsPerBlock; ++s) {
        const uint64_t offset = kBlocks[i] * kBlockBytes + s * kSectorBytes;
        if (offset + kSectorBytes > kTemplateBytes) continue;
        template_.blocks[i].source = kFromTemplate;
        if (i % 2 == 0) continue;
        const uint64_t value = ++next_value_;
        template_.blocks[i].sectors[s] = value;
        const ByteVector bytes = sector_content(value);
        std::copy(bytes.begin(), bytes.end(), image.begin() + static_cast<ptrdiff_t>(offset));
      }
    }
    import_test_template(*backend_, "golden", image);
  }

  void open_store() {
    StoreOptions options;
    options.boot.cap_bytes = boot_cache_bytes_;
    options.boot.clock_ms = [this] { return clock_ms_; };
    store_ = std::make_unique<Store>(std::make_unique<ForwardingBackend>(*backend_), options);
  }

  // Reads that begin as a boot does, all that its threads do, and what an operator may.
  void step_of_boot_cache() {
    Boot& boot = *store_->boot();
    clock_ms_ += static_cast<int64_t>(random_.below(3000));
    ModelVolume* volume = volumes_named() == 0 ? nullptr : &pick_volume();
    switch (random_.below(8)) {
      case 0:
      case 1:
        boot.tend();
        return check_boot_cache();
      case 2:
        if (volume != nullptr && volume->disk) boot.done(volume->uuid);
        return;
      case 3:
        if (volume != nullptr && volume->disk && random_.chance(4)) try_warm(*volume);
        return;
      case 4:
        if (volume != nullptr && random_.chance(20)) store_->forget_boot(volume->name);
        return;
      case 5:
        if (volume != nullptr && volume->disk) read_with_errors(*volume);
        return;
      default:
        if (volume != nullptr && volume->disk) check_content(*volume->disk, volume->content);
    }
  }
  void try_warm(ModelVolume& volume) {
    try {
      store_->warm_boot(
          volume.name, [](uint64_t, uint64_t) {}, [] { return false; });
    } catch (const Error& error) {
      // There is no profile yet, or not even room to read it.
      REQUIRE((error.code() == ENOENT || error.code() == ENOMEM));
    }
  }
  void read_with_errors(ModelVolume& volume) {
    backend_->fail_reads(random_.chance(2) ? "segments/" : "volumes/", EIO);
    try {
      check_content(*volume.disk, volume.content);
    } catch (const Error& error) {
      REQUIRE(error.code() == EIO);
    }
    backend_->fail_reads("segments/", 0);
    backend_->fail_reads("volumes/", 0);
  }
  void check_boot_cache() {
    const BootCacheStats stats = store_->stats().boot_cache;
    REQUIRE(stats.used_bytes <= stats.cap_bytes);
    REQUIRE(stats.peak_bytes <= stats.cap_bytes);
    REQUIRE(stats.slots * kBlockBytes <= stats.used_bytes);
    boot_hits_ += stats.hits;
  }

  size_t volumes_named() const {
    return static_cast<size_t>(std::count_if(volumes_.begin(), volumes_.end(),
                                             [](const auto& v) { return !v->name.empty(); }));
  }
  ModelVolume& pick_volume() {
    while (true) {
      ModelVolume& volume = *volumes_[random_.below(volumes_.size())];
      if (!volume.name.empty()) return volume;
    }
  }

  // What was done in the name of the store is durable then.
  static void note_flushed(ModelVolume& volume) { volume.flushed = volume.content; }

  void create_volume() {
    auto volume = std::make_unique<ModelVolume>();
    volume->name = fmt::format("vm{}", ++next_name_);
    volume->has_template = random_.chance(2);
    volume->uuid =
        store_->create_volume(volume->name, kDiskBytes, volume->has_template ? "golden" : "").uuid;
    if (volume->has_template) volume->content = template_;
    volume->content.size_bytes = kDiskBytes;
    note_flushed(*volume);
    volumes_.push_back(std::move(volume));
  }

  // Each time another VM: one that was there before a rollback would be refused.
  void attach(ModelVolume& volume) {
    volume.disk =
        store_->open_export(fmt::format("{};writer={}", volume.name, ++last_vm_), vm_peer());
  }
  void detach(ModelVolume& volume) {
    volume.disk.reset();
    note_flushed(volume);
  }
  void attach_or_detach(ModelVolume& volume) {
    if (!volume.disk) return attach(volume);
    if (random_.chance(3)) detach(volume);
  }

  // --- data

  // A run of sectors within one cluster, as indices into all blocks' sectors.
  std::pair<size_t, size_t> run(const ModelVolume& volume, size_t count_max) {
    size_t start = 0;
    const size_t which = random_.below(std::size(kClusters));
    for (size_t i = 0; i < which; ++i) start += kClusters[i].count;
    size_t sectors = kClusters[which].count * kSectorsPerBlock;
    // The disk ends within the last cluster.
    const uint64_t first_sector = kClusters[which].first * kSectorsPerBlock;
    sectors = std::min<size_t>(sectors, volume.content.size_bytes / kSectorBytes - first_sector);
    size_t first = random_.below(sectors);
    size_t count = 1 + random_.below(count_max);
    if (random_.chance(2)) {
      first = first / kSectorsPerBlock * kSectorsPerBlock;
      count = (count + kSectorsPerBlock - 1) / kSectorsPerBlock * kSectorsPerBlock;
    }
    return {start * kSectorsPerBlock + first, std::min(count, sectors - first)};
  }
  static uint64_t offset_of(size_t sector) {
    return kBlocks[sector / kSectorsPerBlock] * kBlockBytes +
           sector % kSectorsPerBlock * kSectorBytes;
  }

  void write(ModelVolume& volume) {
    const auto [first, count] = run(volume, 60);
    ByteVector bytes;
    for (size_t i = first; i < first + count; ++i) {
      Block& block = volume.content.blocks[i / kSectorsPerBlock];
      const uint64_t value = ++next_value_;
      block.sectors[i % kSectorsPerBlock] = value;
      block.source = volume.current;
      volume.maybe_holes.erase(kBlocks[i / kSectorsPerBlock]);
      const ByteVector content = sector_content(value);
      bytes.insert(bytes.end(), content.begin(), content.end());
    }
    const bool durable = random_.chance(30);
    volume.disk->write(offset_of(first), bytes, durable);
    if (durable) note_flushed(volume);
  }

  void discard(ModelVolume& volume) {
    const auto [first, count] = run(volume, 120);
    size_t end = first + count;
    uint64_t length = count * kSectorBytes;
    if (random_.chance(10)) {
      // On to some place in a later cluster, with all that is between.
      const auto [other, other_count] = run(volume, 20);
      if (other > first) {
        end = other + other_count;
        length = offset_of(end - 1) + kSectorBytes - offset_of(first);
      }
    }
    const uint64_t disk_sectors = volume.content.size_bytes / kSectorBytes;
    for (size_t i = first; i < end;) {
      const size_t b = i / kSectorsPerBlock;
      Block& block = volume.content.blocks[b];
      const size_t block_end = std::min((b + 1) * kSectorsPerBlock, end);
      // The last block of a disk counts as whole when all that is in the disk is meant.
      const uint64_t last_sector =
          kBlocks[b] * kSectorsPerBlock + (block_end - 1) % kSectorsPerBlock;
      const bool is_whole = i % kSectorsPerBlock == 0 &&
                            (block_end % kSectorsPerBlock == 0 || last_sector + 1 == disk_sectors);
      if (is_whole) {
        if (block.source == volume.current) volume.maybe_holes.insert(kBlocks[b]);
        block = Block{};
      } else if (block.source != kFromZero) {
        for (size_t s = i; s < block_end; ++s) block.sectors[s % kSectorsPerBlock] = 0;
        block.source = volume.current;
        volume.maybe_holes.erase(kBlocks[b]);
      }
      i = block_end;
    }
    const bool durable = random_.chance(20);
    if (random_.chance(2)) {
      volume.disk->trim(offset_of(first), length, durable);
    } else {
      volume.disk->zero(offset_of(first), length, durable);
    }
    if (durable) note_flushed(volume);
  }

  void flush(ModelVolume& volume) {
    if (!volume.disk) return;
    volume.disk->flush();
    note_flushed(volume);
  }

  // After what may have committed some volumes' updates, so that there is one answer to what had to
  // be durable.
  void flush_all() {
    for (auto& volume : volumes_) flush(*volume);
  }

  void grow(ModelVolume& volume) {
    const uint64_t size = volume.content.size_bytes + kSectorBytes * (1 + random_.below(9));
    if (size > kDiskBytes + 8 * kSectorBytes) return;
    store_->resize_volume(volume.name, size);
    volume.content.size_bytes = size;
    note_flushed(volume);
  }

  // --- versions

  Version& freeze(ModelVolume& volume, const std::string& name, uint32_t next_parent) {
    Version& frozen = volume.versions[volume.current];
    frozen = {volume.current_parent, name, volume.content, false, nullptr};
    volume.maybe_holes_of[volume.current] = std::move(volume.maybe_holes);
    volume.maybe_holes.clear();
    volume.content = volume.versions.at(next_parent).content;
    volume.current_parent = next_parent;
    ++volume.current;
    note_flushed(volume);
    return frozen;
  }

  // Somebody begins to read a volume as it is now, or ends.
  void read_current(ModelVolume& volume) {
    check_readers(volume);
    std::vector<Version*> read;
    for (auto& [number, version] : volume.versions)
      if (version.reader) read.push_back(&version);
    if (!read.empty() && random_.chance(2)) {
      read[random_.below(read.size())]->reader.reset();
      return;
    }
    std::shared_ptr<Disk> disk =
        store_->open_export(fmt::format("{}@current", volume.name), vm_peer());
    if (read.size() == Versions::kReadersOfCurrentMax) {
      ByteVector bytes(kSectorBytes);
      REQUIRE_THROWS_AS(disk->read(0, bytes), Error);
      return;
    }
    check_content(*disk, volume.content);
    Version& version = freeze(volume, "", volume.current);
    version.is_removed = true;
    version.reader = std::move(disk);
  }
  void check_readers(ModelVolume& volume) {
    for (auto& [number, version] : volume.versions) {
      INFO("version " << number << ", which was frozen for a reader");
      if (version.reader) check_content(*version.reader, version.content);
    }
  }
  static void end_readers(ModelVolume& volume) {
    for (auto& [number, version] : volume.versions) version.reader.reset();
  }

  std::vector<uint32_t> listed(const ModelVolume& volume) const {
    std::vector<uint32_t> numbers;
    for (const auto& [number, version] : volume.versions)
      if (!version.is_removed) numbers.push_back(number);
    return numbers;
  }
  uint32_t pick_version(const ModelVolume& volume) {
    const auto numbers = listed(volume);
    return numbers.empty() ? 0 : numbers[random_.below(numbers.size())];
  }

  void new_version(ModelVolume& volume) {
    if (listed(volume).size() > 12) return remove_versions(volume);
    const std::string name = random_.chance(3) ? fmt::format("n{}", ++next_name_) : "";
    const VersionInfo frozen = store_->create_version(volume.name, {name, "a note", {}});
    REQUIRE(frozen.number == volume.current);
    freeze(volume, name, volume.current);
  }

  void remove_versions(ModelVolume& volume) {
    std::vector<std::string> names;
    const size_t count = random_.chance(4) ? 1 + random_.below(4) : 1;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t number = pick_version(volume);
      if (number == 0) return;
      Version& version = volume.versions.at(number);
      const bool by_name = !version.name.empty() && random_.chance(2);
      names.push_back(by_name ? version.name : std::to_string(number));
      removing_.push_back(number);
    }
    store_->remove_versions(volume.name, names);
    for (const uint32_t number : removing_) volume.versions.at(number).is_removed = true;
    removing_.clear();
    note_flushed(volume);
    for (const std::string& name : names)
      REQUIRE_THROWS_AS(store_->remove_versions(volume.name, {name}), Error);
  }

  void prune(ModelVolume& volume) {
    RetentionRules rules;
    rules.keep_last = 1 + static_cast<uint32_t>(random_.below(4));
    std::vector<RetentionCandidate> candidates;
    for (const VersionInfo& info : store_->show_volume(volume.name).versions)
      if (!info.is_hidden && !info.is_current)
        candidates.push_back({info.number, info.created_ns, !info.name.empty()});
    std::vector<std::string> names;
    for (const RetentionVerdict& verdict : apply_retention(rules, candidates)) {
      if (verdict.is_kept) continue;
      names.push_back(std::to_string(verdict.number));
      volume.versions.at(verdict.number).is_removed = true;
    }
    REQUIRE(listed(volume).size() <= rules.keep_last);
    if (names.empty()) return;
    store_->remove_versions(volume.name, names);
    note_flushed(volume);
  }

  void roll_back(ModelVolume& volume) {
    const uint32_t target = pick_version(volume);
    if (target == 0) return;
    if (volume.disk) {
      REQUIRE_THROWS_AS(store_->rollback(volume.name, std::to_string(target)), Error);
      detach(volume);
    }
    const VersionInfo frozen = store_->rollback(volume.name, std::to_string(target));
    REQUIRE(frozen.number == volume.current);
    freeze(volume, "", target);
  }

  // --- forks

  void fork(ModelVolume& parent) {
    const uint32_t version = pick_version(parent);
    if (version == 0 || volumes_named() > 7) return;
    auto volume = std::make_unique<ModelVolume>();
    volume->name = fmt::format("vm{}", ++next_name_);
    const VolumeInfo info =
        store_->fork_volume(volume->name, parent.name, std::to_string(version), 0);
    volume->uuid = info.uuid;
    volume->has_template = parent.has_template;
    volume->parent = &parent;
    volume->parent_version = version;
    volume->base = version;
    volume->current = version + 1;
    volume->content = parent.versions.at(version).content;
    REQUIRE(info.parent == fmt::format("{}@{}", parent.name, version));
    REQUIRE(info.current_version == volume->current);
    note_flushed(*volume);
    volumes_.push_back(std::move(volume));
  }

  bool is_alive(const ModelVolume& volume) const {
    return !volume.name.empty() || has_forks(volume);
  }
  bool has_forks(const ModelVolume& volume) const {
    return std::any_of(volumes_.begin(), volumes_.end(), [&](const auto& other) {
      return other->parent == &volume && is_alive(*other);
    });
  }

  void flatten(ModelVolume& volume) {
    end_readers(volume);
    const auto work = [&] { store_->flatten_volume(volume.name, [](uint64_t) {}); };
    if (volume.parent == nullptr || has_forks(volume)) {
      REQUIRE_THROWS_AS(work(), Error);
      return;
    }
    work();
    volume.parent = nullptr;
    volume.base = 0;
    volume.was_flattened = true;
    // What a commit covers is durable: all that was there before.
    note_flushed(volume);
  }

  void remove_volume(ModelVolume& volume) {
    end_readers(volume);
    if (volume.disk) {
      REQUIRE_THROWS_AS(store_->remove_volume(volume.name), Error);
      detach(volume);
    }
    store_->remove_volume(volume.name);
    volume.name.clear();
    for (auto& [number, version] : volume.versions) version.is_removed = true;
    forget_dead();
  }
  void forget_dead() {
    // A volume that nothing needs any more lets its parent go, and so on.
    while (true) {
      const auto dead = std::find_if(volumes_.begin(), volumes_.end(), [this](const auto& volume) {
        return !is_alive(*volume) && !is_a_parent(*volume);
      });
      if (dead == volumes_.end()) return;
      volumes_.erase(dead);
    }
  }
  bool is_a_parent(const ModelVolume& volume) const {
    return std::any_of(volumes_.begin(), volumes_.end(),
                       [&](const auto& other) { return other->parent == &volume; });
  }

  // --- checks

  void check_content(Disk& disk, const Content& content) {
    REQUIRE(disk.size_bytes() == content.size_bytes);
    size_t index = 0;
    for (const Cluster& cluster : kClusters) {
      const uint64_t offset = cluster.first * kBlockBytes;
      ByteVector bytes(std::min(cluster.count * kBlockBytes, content.size_bytes - offset));
      disk.read(offset, bytes);
      for (size_t s = 0; s < bytes.size() / kSectorBytes; ++s) {
        const uint64_t value =
            content.blocks[index + s / kSectorsPerBlock].sectors[s % kSectorsPerBlock];
        const bool is_right = std::ranges::equal(
            Bytes(bytes).subspan(s * kSectorBytes, kSectorBytes), sector_content(value));
        uint64_t shown;
        std::memcpy(&shown, bytes.data() + s * kSectorBytes, sizeof shown);
        INFO("block " << cluster.first + s / kSectorsPerBlock << " sector " << s % kSectorsPerBlock
                      << " shows " << shown << " and should show " << value);
        REQUIRE(is_right);
      }
      index += cluster.count;
    }
  }

  void check_version(ModelVolume& volume, uint32_t number) {
    INFO("version " << number);
    const auto disk = store_->open_export(fmt::format("{}@{}", volume.name, number), vm_peer());
    check_content(*disk, volume.versions.at(number).content);
    if (random_.chance(4))
      REQUIRE_THROWS_AS(store_->remove_versions(volume.name, {std::to_string(number)}), Error);
  }
  void check_version(ModelVolume& volume) {
    if (const uint32_t number = pick_version(volume)) check_version(volume, number);
  }

  // The ranges that are told are those in which a block comes from elsewhere, and no others; and
  // they are what the export of the changes has as data.
  void check_difference(ModelVolume& volume) {
    const uint32_t from = pick_version(volume);
    const uint32_t to = random_.chance(3) ? 0 : pick_version(volume);
    if (from == 0) return;
    const Content& before = volume.versions.at(from).content;
    const Content& after = to == 0 ? volume.content : volume.versions.at(to).content;
    std::set<uint64_t> changed;
    store_->diff_versions(volume.name, std::to_string(from), to == 0 ? "" : std::to_string(to),
                          [&](const ChangedRange& range) {
                            for (uint64_t b = range.offset / kBlockBytes;
                                 b < blocks_of(range.offset + range.length); ++b)
                              changed.insert(b);
                          });
    std::unique_ptr<Disk> disk;
    if (to != 0)
      disk = store_->open_export(fmt::format("{}@{}..{}", volume.name, from, to), vm_peer());
    for (size_t i = 0; i < kBlocks.size(); ++i) {
      if (kBlocks[i] * kBlockBytes >= after.size_bytes) continue;
      const bool differs = before.blocks[i].source != after.blocks[i].source;
      // A closed volume's current is as of the last commit, and so is the model's.
      INFO("block " << kBlocks[i] << " from version " << from << " to " << to);
      REQUIRE(changed.contains(kBlocks[i]) == differs);
      if (!disk) continue;
      ByteVector bytes(
          std::min<uint64_t>(kBlockBytes, after.size_bytes - kBlocks[i] * kBlockBytes));
      disk->read(kBlocks[i] * kBlockBytes, bytes);
      for (size_t s = 0; s < bytes.size() / kSectorBytes; ++s) {
        const uint64_t value = differs ? after.blocks[i].sectors[s] : 0;
        REQUIRE(std::ranges::equal(Bytes(bytes).subspan(s * kSectorBytes, kSectorBytes),
                                   sector_content(value)));
      }
    }
    // What is between them changes only by a trim over a template.
    if (volume.has_template) return;
    for (const uint64_t block : changed)
      REQUIRE(std::binary_search(kBlocks.begin(), kBlocks.end(), block));
  }

  // A version, and then what changed from it to another one, carried to a new volume by files.
  void carry(ModelVolume& volume) {
    const uint32_t first = pick_version(volume);
    const uint32_t second = pick_version(volume);
    if (first == 0 || volume.versions.at(second).content.size_bytes <
                          volume.versions.at(first).content.size_bytes)
      return;
    const TemporaryDirectory directory;
    std::map<uint32_t, VersionInfo> infos;
    for (const VersionInfo& info : store_->show_volume(volume.name).versions)
      infos[info.number] = info;
    const std::string copy = fmt::format("vm{}", ++next_name_);
    VersionInfo made;
    const auto carry_one = [&](const std::string& range, uint32_t base, uint32_t number) {
      const std::string file = fmt::format("{}/{}", directory.path(), number + 1000 * base);
      const auto disk =
          store_->open_export(fmt::format("{}@{}{}", volume.name, range, number), vm_peer());
      IncrementInfo info;
      if (base != 0) {
        info.base = infos.at(base).identity;
        info.base_size_bytes = infos.at(base).size_bytes;
      }
      info.version = infos.at(number).identity;
      info.volume_name = volume.name;
      info.created_ns = infos.at(number).created_ns;
      info.size_bytes = disk->size_bytes();
      write_increment(*disk, info, file, {});
      IncrementReader reader = IncrementReader::open(file);
      reader.verify();
      Store::ImportedVersion imported;
      if (base != 0) imported.base = std::to_string(made.number);
      imported.base_identity = reader.info().base;
      imported.size_bytes = reader.info().size_bytes;
      imported.version.origin = reader.info().version;
      made = store_->import_version(copy, imported, [&](Disk& into) { reader.apply(into); });
      REQUIRE(made.identity == infos.at(number).identity);
      const auto shown = store_->open_export(fmt::format("{}@{}", copy, made.number), vm_peer());
      check_content(*shown, volume.versions.at(number).content);
    };
    carry_one("", 0, first);
    carry_one(fmt::format("{}..", first), first, second);
    store_->remove_volume(copy);
  }

  // --- space

  // The versions whose trees count: those that are listed, current, those that forks are pinned to,
  // and where the history branches.
  std::set<uint32_t> retained(const ModelVolume& volume) const {
    std::set<uint32_t> kept;
    std::map<uint32_t, unsigned> branches;  // children below which something is retained
    std::set<uint32_t> pinned;
    for (const auto& other : volumes_)
      if (other->parent == &volume && is_alive(*other)) pinned.insert(other->parent_version);
    // From the newest to the oldest: children have larger numbers than their parents.
    if (!volume.name.empty()) {
      kept.insert(volume.current);
      ++branches[volume.current_parent];
    }
    for (auto it = volume.versions.rbegin(); it != volume.versions.rend(); ++it) {
      const auto& [number, version] = *it;
      const bool is_needed =
          !version.is_removed || version.reader || pinned.contains(number) || branches[number] >= 2;
      if (is_needed) kept.insert(number);
      if (is_needed || branches[number] > 0) ++branches[version.parent];
    }
    return kept;
  }

  const Content& content_of(const ModelVolume& volume, uint32_t number) const {
    return number == volume.current ? volume.content : volume.versions.at(number).content;
  }
  std::set<Cell> cells_of(const ModelVolume& volume, uint32_t number) const {
    std::set<Cell> cells;
    const Content& content = content_of(volume, number);
    for (size_t i = 0; i < kBlocks.size(); ++i) {
      const uint32_t source = content.blocks[i].source;
      if (source != kFromZero && source != kFromTemplate && source > volume.base)
        cells.insert({source, kBlocks[i]});
    }
    return cells;
  }

  void check_space() {
    // Forks that are gone are noticed by who looks.
    flush_all();
    store_->remove_orphans();
    store_->reclaim();
    store_->checkpoint(false);
    std::set<std::string> folders;
    for (auto& volume : volumes_) {
      if (!is_alive(*volume)) continue;
      folders.insert(volume->uuid.text());
      check_space(*volume);
    }
    for (const std::string& folder : backend_->list("volumes")) {
      INFO("folder " << folder);
      REQUIRE(folders.contains(folder));
    }
    REQUIRE(folders.size() == backend_->list("volumes").size());
  }

  void check_space(ModelVolume& volume) {
    INFO("volume " << volume.name << " " << volume.uuid.text() << ", current " << volume.current);
    const std::set<uint32_t> kept = retained(volume);
    std::map<Cell, unsigned> users;
    std::map<Cell, uint32_t> user;
    for (const uint32_t number : kept) {
      for (const Cell& cell : cells_of(volume, number)) {
        ++users[cell];
        user[cell] = number;
      }
    }
    const std::set<Cell> allocated = allocated_cells(*backend_, volume.uuid);
    for (const Cell& cell : allocated) {
      INFO("cell of version " << cell.first << ", block " << cell.second << " is a leak");
      REQUIRE(users.contains(cell));
    }
    for (const auto& [cell, count] : users) {
      if (allocated.contains(cell)) continue;
      INFO("cell of version " << cell.first << ", block " << cell.second << " is not there");
      const auto holes = volume.maybe_holes_of.find(cell.first);
      const bool may_be_hole =
          volume.maybe_holes.contains(cell.second) ||
          (holes != volume.maybe_holes_of.end() && holes->second.contains(cell.second));
      REQUIRE(may_be_hole);
    }
    if (volume.name.empty()) return;
    std::map<uint32_t, uint64_t> file_blocks;
    for (const auto& [cell, count] : users) ++file_blocks[cell.first];
    std::map<uint32_t, uint64_t> own_blocks;
    for (const auto& [cell, count] : users)
      if (count == 1) ++own_blocks[user[cell]];

    const auto map =
        VolumeMap::open(*backend_, volume_folder(volume.uuid), volume.uuid, Access::kRead);
    const auto removed =
        map->ask([](const MapState& state) { return state.table().removed_files; });
    for (const auto& [source, blocks] : removed) {
      INFO("file of removed version " << source);
      REQUIRE(blocks == file_blocks[source]);
    }
    // Of files that a flattening has copied the cells are not counted.
    if (!volume.was_flattened) {
      for (const auto& [source, blocks] : file_blocks) {
        INFO("file of version " << source);
        REQUIRE((blocks == 0 || kept.contains(source) || removed.contains(source)));
      }
    }
    uint64_t shared = 0;
    for (const Block& block : volume.content.blocks)
      if (block.source != kFromZero && block.source != kFromTemplate && block.source <= volume.base)
        shared += kBlockBytes;
    const VolumeInfo info = store_->show_volume(volume.name);
    CHECK(info.shared_bytes == shared);
    REQUIRE(info.versions.size() == kept.size());
    for (const VersionInfo& version : info.versions) {
      INFO("version " << version.number);
      REQUIRE(kept.contains(version.number));
      REQUIRE(version.is_hidden ==
              (!version.is_current && volume.versions.at(version.number).is_removed));
      const bool frees_nothing = version.children.size() > 1 || !version.forks.empty();
      CHECK(version.own_bytes == (frees_nothing ? 0 : own_blocks[version.number] * kBlockBytes));
    }
    for (const VersionRecord& record : map->versions()) {
      INFO("version " << record.number);
      CHECK(record.file_blocks == file_blocks[record.number]);
    }
  }

  // --- crashes

  // The process ends; what it wrote is there. Every sector shows what was flushed last or what was
  // written last, since nothing commits in between.
  void crash() {
    if (random_.chance(2)) flush_all();
    auto after = backend_->clone();
    after->set_recording(false);
    for (auto& volume : volumes_) {
      volume->disk.reset();
      end_readers(*volume);
    }
    store_.reset();
    backend_ = std::move(after);
    open_store();
    for (auto& volume : volumes_) {
      if (volume->name.empty()) continue;
      // The VM that was connected does not come back.
      const LockInfo lock = store_->show_lock(volume->name);
      if (lock.state == LockInfo::State::kCrashed) store_->break_lock(volume->name, lock.epoch);
      INFO("volume " << volume->name << " after a crash");
      recover(*volume);
    }
  }

  void recover(ModelVolume& volume) {
    const auto map =
        VolumeMap::open(*backend_, volume_folder(volume.uuid), volume.uuid, Access::kRead);
    REQUIRE(map->current() == volume.current);
    attach(volume);
    for (size_t i = 0; i < kBlocks.size(); ++i) {
      const Block& flushed = volume.flushed.blocks[i];
      Block& latest = volume.content.blocks[i];
      if (kBlocks[i] * kBlockBytes >= volume.content.size_bytes) continue;
      RunList runs;
      map->find(0, {kBlocks[i], 1}, runs);
      uint32_t source = runs[0].source;
      // Behind a template, or without one, no interval means zeroes.
      const bool is_behind = !volume.has_template || kBlocks[i] >= blocks_of(kTemplateBytes);
      if (source == kSourceUnmapped && is_behind) source = kFromZero;
      INFO("block " << kBlocks[i] << " comes from " << source << ", flushed from " << flushed.source
                    << ", latest from " << latest.source);
      REQUIRE((source == flushed.source || source == latest.source));
      ByteVector bytes(kBlockBytes);
      const uint64_t offset = kBlocks[i] * kBlockBytes;
      bytes.resize(std::min<uint64_t>(kBlockBytes, volume.content.size_bytes - offset));
      volume.disk->read(offset, bytes);
      for (size_t s = 0; s < bytes.size() / kSectorBytes; ++s) {
        const Bytes shown = Bytes(bytes).subspan(s * kSectorBytes, kSectorBytes);
        if (std::ranges::equal(shown, sector_content(latest.sectors[s]))) continue;
        INFO("sector " << s);
        REQUIRE(std::ranges::equal(shown, sector_content(flushed.sectors[s])));
        latest.sectors[s] = flushed.sectors[s];
      }
      latest.source = source;
    }
    note_flushed(volume);
  }

  Random& random_;
  const uint64_t boot_cache_bytes_;
  int64_t clock_ms_ = 0;
  uint64_t boot_hits_ = 0;
  std::unique_ptr<MemoryBackend> backend_;
  std::unique_ptr<Store> store_;
  Content template_;
  std::vector<std::unique_ptr<ModelVolume>> volumes_;
  std::vector<uint32_t> removing_;
  uint64_t next_value_ = 0;
  unsigned next_name_ = 0;
  unsigned last_vm_ = 0;
};

}  // namespace

TEST_CASE("volumes, versions and forks are what the model says, and take the space it says") {
  Random random(test_seed());
  const uint64_t operations = test_operations(kIsSanitized ? 25'000 : 200'000);
  uint64_t done = 0;
  while (done < operations) {
    Model model(random);
    for (unsigned i = 0; i < 4000 && done < operations; ++i, ++done) model.step();
    model.check_all();
    model.close();
  }
  MESSAGE(done << " operations");
}

TEST_CASE("they are so too where a boot cache keeps what is read") {
  Random random(test_seed());
  const uint64_t operations = test_operations(kIsSanitized ? 10'000 : 100'000);
  uint64_t done = 0;
  bool has_hit = false;
  while (done < operations) {
    Model model(random, (16 + (uint64_t{1} << random.below(13))) * kBlockBytes);
    for (unsigned i = 0; i < 4000 && done < operations; ++i, ++done) model.step();
    model.check_all();
    has_hit |= model.has_hit();
    model.close();
  }
  CHECK(has_hit);
  MESSAGE(done << " operations");
}

}  // namespace tplstore::store_model_test
