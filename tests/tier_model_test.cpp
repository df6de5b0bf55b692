// Two servers of a host with one tier, and everything that may become of its directories, at
// random: what guests read is compared, always, and never fails.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <set>

#include "template/import_journal.h"
#include "template/template_catalog.h"
#include "tier_testing.h"
#include "volume_testing.h"

namespace tplstore::tier_model_test {
using namespace tplstore::testing;
using Call = ForwardingBackend::Call;

namespace {

constexpr size_t kTemplates = 6;
constexpr size_t kDisks = 4;
constexpr uint64_t kBlocksMax = 12;  // of a template
const Tier::Progress kNoProgress = [](uint64_t, uint64_t) {};

// What a block has in it, made once.
const ByteVector& known_block(uint64_t number) {
  static std::map<uint64_t, ByteVector> known;
  const auto [block, is_new] = known.try_emplace(number);
  if (is_new) block->second = block_of(number);
  return block->second;
}

struct Server {
  std::unique_ptr<Tier> tier;
  std::unique_ptr<BlockSource> blocks;
  std::map<std::string, std::shared_ptr<TemplateImage>> images;

  ~Server() {
    images.clear();
    blocks.reset();
  }
};

class World : TierFixture {
 public:
  explicit World(uint64_t seed) : TierFixture(1), random_(seed) {
    store.set_recording(false);
    for (size_t i = 0; i < kDisks; ++i) {
      paths_.push_back(fmt::format("/ssd{}", i));
      TierDisk& disk = disks[paths_.back()];
      disk.memory->set_recording(false);
      disk.around = [this, i](Call call, const std::string& name,
                              const std::function<void()>& go_on) {
        run_call(i, call, name, go_on);
      };
      disk_memory_.push_back(disk.memory);
      mount_points_.push_back(std::make_shared<MemoryBackend>());
    }
    templates_["a"] = {1, 2};
    make_server(0);
    make_server(1);
  }

  void step() {
    now_ns += static_cast<int64_t>(below(20)) * kSecond / 10;
    const uint64_t choice = below(1000);
    if (choice < 760) return read();
    if (choice < 860) return tend();
    if (choice < 880) return damage();
    if (choice < 890) return change_table();
    if (choice < 905) return exchange_disk();
    if (choice < 930) return break_disk();
    if (choice < 940) return move();
    if (choice < 955) return sweep();
    if (choice < 965) return import_step();
    if (choice < 968) return remove();
    if (choice < 970) return collect();
    if (choice < 980) return resize_disk();
    if (choice < 985) return warm();
    if (choice < 988) return make_server(below(2));
    if (choice < 996) return close_images();
    now_ns += options.keep_ns / 2;
  }

  // All that is broken is mended: then each copy comes to its place, and nothing else stays.
  void finish() {
    finish_import();
    for (size_t i = 0; i < kDisks; ++i) {
      faults_[i] = 0;
      disk_memory_[i]->set_capacity_bytes(UINT64_MAX);
      mend(i);
    }
    now_ns += 3 * options.keep_ns;
    for (int round = 0; round < 6; ++round) {
      for (Server& server : servers_) server.tier->tend();
      now_ns += 30 * kSecond;
    }
    Tier& tier = *servers_[0].tier;
    CHECK(tier.move_copies(false, kNoProgress).problems.empty());
    table.finish_move();
    set_table();
    tier.sweep();
    for (const auto& [name, numbers] : templates_) {
      const auto result = tier.warm(wanted(name), kNoProgress);
      if (!table.directories.empty()) CHECK(result.missing.empty());
    }
    CHECK(tier.check(kNoProgress).damaged <= damages_);
    std::set<Hash128> needed;
    for (const auto& [name, numbers] : templates_)
      for (const WantedSegment& segment : wanted(name)) needed.insert(segment.name);
    for (const TierEntry& entry : table.directories)
      for (const Hash128& name : list_segments(*disks[entry.path].memory)) {
        CHECK(needed.contains(name));
        if (entry.kind == TierEntry::Kind::kSsd)
          CHECK(*table.placement.at(name.high) == entry.uuid);
      }
    for (const auto& mount_point : mount_points_) CHECK(mount_point->event_count() == 0);
    for (Server& server : servers_) count(server);
  }

  // Of all of this world: what was read by guests; and what its tiers did.
  uint64_t reads() const { return reads_; }
  uint64_t moved() const { return moved_; }
  const TierStats& done() const { return done_; }

 private:
  uint64_t below(uint64_t end) { return random_() % end; }

  // --- disks

  void run_call(size_t disk, Call call, const std::string& name,
                const std::function<void()>& go_on) {
    if (faults_[disk] == 0 || below(100) >= faults_[disk]) return go_on();
    constexpr std::array kCodes = {EIO, EIO, ENOSPC, EROFS, ENOENT, EMFILE};
    const int code = kCodes[below(kCodes.size())];
    if (below(2) == 0) go_on();
    // A read that was done and then failed has left what it likes.
    (void)call;
    fail_errno(code, name, "injected");
  }
  void break_disk() {
    const size_t disk = below(kDisks);
    faults_[disk] = faults_[disk] == 0 ? static_cast<uint32_t>(1 + below(60)) : 0;
  }
  void resize_disk() {
    disk_memory_[below(kDisks)]->set_capacity_bytes(below(3) == 0 ? UINT64_MAX
                                                                  : 16384 * (1 + below(60)));
  }
  void mend(size_t i) {
    disks[paths_[i]].memory = disk_memory_[i];
    disks[paths_[i]].is_missing = false;
    if (identities_.contains(i)) {
      disk_memory_[i]->set_content(kTierIdentityObject, identities_[i]);
      identities_.erase(i);
    }
  }
  // Unmounts it, so that there is nothing, or an empty folder; or what says whose it is goes; or it
  // is all as it was.
  void exchange_disk() {
    const size_t i = below(kDisks);
    TierDisk& disk = disks[paths_[i]];
    switch (below(6)) {
      case 0:
        disk.memory = mount_points_[i];
        return;
      case 1:
        disk.is_missing = true;
        return;
      case 2:
        if (!disk_memory_[i]->get(kTierIdentityObject, 4096)) return;
        identities_.try_emplace(i, disk_memory_[i]->content(kTierIdentityObject));
        disk_memory_[i]->remove(kTierIdentityObject);
        return;
      default:
        return mend(i);
    }
  }
  void damage() {
    MemoryBackend& memory = *disk_memory_[below(kDisks)];
    const auto names = list_segments(memory);
    if (names.empty()) return;
    const std::string path = segment_path(names[below(names.size())]);
    ByteVector content = memory.content(path);
    ++damages_;
    if (content.empty() || below(10) == 0) {
      content.resize(below(3 * kBlockBytes));
    } else if (below(10) == 0) {
      memory.remove(path);
      return;
    } else {
      content[below(content.size())] ^= static_cast<std::byte>(1 + below(255));
    }
    memory.set_content(path, content);
  }

  // --- the table

  void set_table() {
    ++table.generation;
    for (Server& server : servers_)
      if (server.tier) server.tier->set_table(table);
  }
  void change_table() {
    const size_t i = below(kDisks);
    const auto known = std::ranges::find(table.directories, paths_[i], &TierEntry::path);
    const uint64_t weight = kTierWeightBytesMin * (1 + below(8));
    if (known == table.directories.end()) {
      MemoryBackend& memory = *disk_memory_[i];
      if (identities_.contains(i)) return;
      auto identity = load_tier_identity(memory);
      if (!identity) {
        put_new_tier_identity(memory, options.identity.uuid, options.host.host_id, random_uuid());
        identity = load_tier_identity(memory);
      }
      const auto kind = below(4) == 0 ? TierEntry::Kind::kLocal : TierEntry::Kind::kSsd;
      table.add({identity->directory, paths_[i], weight, kind, false});
    } else if (known->is_leaving) {
      TierEntry entry = *known;
      entry.is_leaving = false;
      table.add(entry);
    } else if (below(2) == 0) {
      table.set_weight(known->uuid, weight);
    } else {
      table.remove(known->uuid);
    }
    set_table();
  }
  void move() {
    Tier& tier = *servers_[below(2)].tier;
    int steps = below(2) == 0 ? static_cast<int>(below(6)) : 1000;
    try {
      const auto result = tier.move_copies(false, [&](uint64_t, uint64_t) {
        if (--steps < 0) fail(EINTR, "test", "interrupted");
        if (below(4) == 0) read();
      });
      moved_ += result.moved_segments;
      if (!result.problems.empty()) return;
      table.finish_move();
      set_table();
    } catch (const Error& error) {
      CHECK(error.code() == EINTR);
    }
  }

  // --- templates

  std::vector<WantedSegment> wanted(const std::string& name) {
    std::vector<WantedSegment> all;
    const Manifest manifest = *load_manifest(store, name);
    for (const ManifestSegment& segment : manifest.segments)
      all.push_back({segment.name, segment.block_count});
    return all;
  }
  // An import goes on in steps, and has the lock that one has meanwhile.
  void import_step() {
    if (import_) return next_of_import();
    const std::string name(1, static_cast<char>('a' + below(kTemplates)));
    if (templates_.contains(name)) return;
    import_.emplace();
    import_->name = name;
    const uint64_t count = 1 + below(kBlocksMax);
    for (uint64_t i = 0; i < count; ++i) import_->numbers.push_back(1 + below(24));
    // What it will publish is made elsewhere.
    MemoryBackend made;
    made.set_recording(false);
    made.set_content(kIdentityObject, store.content(kIdentityObject));
    make_template(made, name, import_->numbers, count * kBlockBytes, 2);
    for (const Hash128& segment : list_segments(made))
      import_->segments.emplace_back(segment, made.content(segment_path(segment)));
    import_->manifest = made.content(manifest_path(name));
    import_->lock = store.try_lock("gc.lock", LockMode::kShared);
    import_->journal = std::make_unique<ImportJournal>(store, name, count * kBlockBytes);
  }
  void next_of_import() {
    Import& import = *import_;
    if (import.done < import.segments.size()) {
      const auto& [segment, content] = import.segments[import.done++];
      import.journal->add(segment);
      import.journal->commit();
      store.put_new(segment_path(segment), content);
      // As with --eager: its copy may come before the manifest.
      if (below(2) == 0) servers_[below(2)].tier->warm({{segment, 0}}, kNoProgress);
    } else if (!import.has_manifest) {
      store.put_new(manifest_path(import.name), import.manifest);
      import.has_manifest = true;
    } else {
      import.journal->remove();
      templates_[import.name] = import.numbers;
      import_.reset();
    }
  }
  void finish_import() {
    while (import_) next_of_import();
  }
  void close_images() {
    Server& server = servers_[below(2)];
    server.images.clear();
    server.blocks->free_unused_copies();
  }
  void remove() {
    if (import_ || templates_.empty()) return;
    const auto chosen = std::next(templates_.begin(), static_cast<long>(below(templates_.size())));
    for (Server& server : servers_) server.images.erase(chosen->first);
    remove_template(store, chosen->first, [] { return std::vector<std::string>(); });
    templates_.erase(chosen);
  }
  void collect() {
    if (!import_) gc(store);
  }

  // --- servers

  void make_server(size_t i) {
    Server& server = servers_[i];
    count(server);
    server.images.clear();
    server.blocks.reset();
    TierOptions of_server = options;
    of_server.look_again = [&server](const Hash128& name) { server.blocks->look_again(name); };
    server.tier = std::make_unique<Tier>(of_server);
    server.blocks = std::make_unique<BlockSource>(store);
    server.blocks->set_copies(*server.tier, options.identity.secret);
    server.tier->set_table(table);
  }
  void tend() {
    Server& server = servers_[below(2)];
    server.tier->tend();
    server.blocks->free_unused_copies();
  }
  void warm() {
    if (templates_.empty()) return;
    const auto chosen = std::next(templates_.begin(), static_cast<long>(below(templates_.size())));
    servers_[below(2)].tier->warm(wanted(chosen->first), kNoProgress);
  }
  // No copy that is needed, and where it belongs, may be taken.
  void sweep() {
    Tier& tier = *servers_[below(2)].tier;
    std::map<Hash128, uint32_t> needed;
    for (const auto& [name, numbers] : templates_)
      for (const WantedSegment& segment : wanted(name)) needed[segment.name] = 0;
    if (import_)
      for (size_t i = 0; i < import_->done; ++i) needed[import_->segments[i].first] = 0;
    std::set<std::pair<size_t, Hash128>> before;
    for (size_t i = 0; i < kDisks; ++i)
      for (const Hash128& name : list_segments(*disk_memory_[i]))
        if (needed.contains(name)) before.emplace(i, name);
    try {
      tier.sweep();
    } catch (const Error&) {  // a directory that fails
    }
    for (const auto& [i, name] : before) {
      const auto entry = std::ranges::find(table.directories, paths_[i], &TierEntry::path);
      if (entry == table.directories.end()) continue;
      const auto places = table.places_of(name);
      if (std::ranges::count(places, entry->uuid) > 0)
        CHECK(disk_memory_[i]->get(segment_path(name), kSegmentBytesMax));
    }
  }

  void read() {
    if (templates_.empty()) return;
    const auto chosen = std::next(templates_.begin(), static_cast<long>(below(templates_.size())));
    const auto& [name, numbers] = *chosen;
    Server& server = servers_[below(2)];
    auto& image = server.images[name];
    if (!image) image = TemplateImage::open(store, *server.blocks, name);
    const uint64_t size = numbers.size() * kBlockBytes;
    const bool is_whole = below(4) != 0;
    uint64_t offset = below(size), length = 1 + below(std::min<uint64_t>(size - offset, 20000));
    if (is_whole) {
      offset = offset / kBlockBytes * kBlockBytes;
      length = std::min(size - offset, (1 + below(4)) * kBlockBytes);
    }
    ByteVector bytes(length);
    image->read(offset, bytes);
    ++reads_;
    for (uint64_t at = 0; at < length;) {
      const uint64_t from = (offset + at) % kBlockBytes;
      const uint64_t part = std::min(length - at, kBlockBytes - from);
      const ByteVector& block = known_block(numbers[(offset + at) / kBlockBytes]);
      REQUIRE(std::memcmp(bytes.data() + at, block.data() + from, part) == 0);
      at += part;
    }
  }

  void count(const Server& server) {
    if (!server.tier) return;
    const TierStats stats = server.tier->stats();
    done_.reads += stats.reads;
    done_.fills += stats.fills;
    done_.damaged += stats.damaged;
    done_.errors += stats.errors;
    done_.origin_reads += stats.origin_reads;
  }

  struct Import {
    std::string name;
    std::vector<uint64_t> numbers;
    std::vector<std::pair<Hash128, ByteVector>> segments;
    ByteVector manifest;
    std::unique_ptr<HeldLock> lock;
    std::unique_ptr<ImportJournal> journal;
    size_t done = 0;
    bool has_manifest = false;
  };

  std::mt19937_64 random_;
  std::vector<std::string> paths_;
  std::vector<std::shared_ptr<MemoryBackend>> disk_memory_;
  std::vector<std::shared_ptr<MemoryBackend>> mount_points_;
  std::array<uint32_t, kDisks> faults_{};
  std::map<size_t, ByteVector> identities_;  // that were taken away
  std::map<std::string, std::vector<uint64_t>> templates_;
  std::optional<Import> import_;
  std::array<Server, 2> servers_;
  uint64_t reads_ = 0;
  uint64_t moved_ = 0;
  TierStats done_;
  uint64_t damages_ = 0;
};

}  // namespace

TEST_CASE("whatever becomes of the tier, guests read what the template has") {
  const uint64_t steps = test_operations(kIsSanitized ? 60'000 : 200'000);
  constexpr uint64_t kStepsOfWorld = 10'000;
  const uint64_t first_seed = test_seed();
  uint64_t reads = 0, moved = 0;
  TierStats tier;
  for (uint64_t done = 0; done < steps; done += kStepsOfWorld) {
    const uint64_t seed = first_seed + done;
    INFO("seed ", seed);
    World world(seed);
    for (uint64_t i = 0; i < std::min(steps - done, kStepsOfWorld); ++i) {
      INFO("step ", i);
      world.step();
    }
    world.finish();
    reads += world.reads();
    moved += world.moved();
    tier.reads += world.done().reads;
    tier.fills += world.done().fills;
    tier.damaged += world.done().damaged;
    tier.origin_reads += world.done().origin_reads;
  }
  MESSAGE(reads << " reads; pieces read from copies " << tier.reads << ", at the origin "
                << tier.origin_reads << "; " << tier.fills << " fills, " << tier.damaged
                << " damaged, " << moved << " moved");
  CHECK(tier.reads > steps / 20);
  CHECK(tier.fills > steps / 1000);
  CHECK(tier.damaged > steps / 10000);
  CHECK(moved > steps / 10000);
}

}  // namespace tplstore::tier_model_test
