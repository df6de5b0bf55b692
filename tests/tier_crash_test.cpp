// What a crash may leave of a store and of its tier together.
//
// Both are in one backend that records, so that a crash falls between any two changes of either. A
// script of random steps (imports, removals, gc; copies made, moved, swept, given up, damaged and
// used for mending the origin) is recorded. After a crash behind any event every template is there
// that was there before and after the step that was under way, no other is than was before or
// after it, all read right with the tier and without, and what nothing needs can be given back.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>

#include "import_testing.h"
#include "template/template_catalog.h"
#include "tier_testing.h"
#include "volume_testing.h"

namespace tplstore::tier_crash_test {
using namespace tplstore::testing;

namespace {

constexpr size_t kDirectories = 3;
constexpr uint64_t kChunkBlocks = 16;  // of equal blocks: so many are given up
const Tier::Progress kNoProgress = [](uint64_t, uint64_t) {};
std::vector<std::string> nobody() { return {}; }

// What is beneath a folder of a backend, as if that were all.
class FolderBackend final : public Backend {
 public:
  FolderBackend(Backend& whole, const std::string& folder) : whole_(whole), folder_(folder) {}

  std::unique_ptr<Object> open(const std::string& name, Access access, Purpose purpose) override {
    return whole_.open(beneath(name), access, purpose);
  }
  std::unique_ptr<Object> create(const std::string& name, uint64_t size_bytes,
                                 Purpose purpose) override {
    return whole_.create(beneath(name), size_bytes, purpose);
  }
  bool put_new(const std::string& name, Bytes content) override {
    return whole_.put_new(beneath(name), content);
  }
  std::optional<ByteVector> get(const std::string& name, uint64_t max_bytes) override {
    return whole_.get(beneath(name), max_bytes);
  }
  std::vector<std::string> list(const std::string& folder) override {
    return whole_.list(beneath(folder));
  }
  bool remove(const std::string& name) override { return whole_.remove(beneath(name)); }
  void remove_folder(const std::string& folder) override { whole_.remove_folder(beneath(folder)); }
  void sync_folder(const std::string& folder) override { whole_.sync_folder(beneath(folder)); }
  using Backend::try_lock;
  std::unique_ptr<HeldLock> try_lock(const std::string& name, LockMode mode,
                                     uint64_t slot) override {
    return whole_.try_lock(beneath(name), mode, slot);
  }
  bool is_locked(const std::string& name) override { return whole_.is_locked(beneath(name)); }
  uint32_t write_alignment_bytes() const override { return 1; }
  std::string describe() const override { return "/" + folder_; }

 private:
  std::string beneath(const std::string& name) const {
    return name.empty() ? folder_ : folder_ + "/" + name;
  }
  Backend& whole_;
  const std::string folder_;
};

std::string folder_of(size_t directory) { return fmt::format("ssd{}", directory); }
ByteVector content_of(Backend& backend, const Hash128& name) {
  return backend.get(segment_path(name), kSegmentBytesMax).value();
}

// A host with a store and its tier, on what a backend has.
struct Machine {
  explicit Machine(MemoryBackend& memory) : store(memory, "store") {
    options.store = options.origin = &store;
    options.identity = load_identity(store);
    options.host.host_id = Uuid{{1, 2, 3}};
    options.open_directory = [&memory](const std::string& path) {
      return std::make_unique<FolderBackend>(memory, path.substr(1));
    };
    options.look_again = [this](const Hash128& name) { blocks->look_again(name); };
    options.clock = [this] { return now_ns; };
    options.fill_bytes_per_second = uint64_t{1} << 62;
  }
  void start(const TierTable& table) {
    tier.emplace(options);
    blocks.emplace(store);
    blocks->set_copies(*tier, options.identity.secret);
    tier->set_table(table);
    tier->open_directories();
  }
  ByteVector read(const std::string& name) {
    return read_whole(*TemplateImage::open(store, *blocks, name));
  }
  std::vector<WantedSegment> segments_of(const std::string& name) {
    std::vector<WantedSegment> segments;
    const Manifest manifest = *load_manifest(store, name);
    for (const ManifestSegment& segment : manifest.segments)
      segments.push_back({segment.name, segment.block_count});
    return segments;
  }
  std::unique_ptr<FolderBackend> directory(const TierEntry& entry) {
    return std::unique_ptr<FolderBackend>(
        static_cast<FolderBackend*>(options.open_directory(entry.path).release()));
  }

  FolderBackend store;
  int64_t now_ns = 1000 * kSecond;
  TierOptions options;
  std::optional<Tier> tier;
  std::optional<BlockSource> blocks;  // goes before the tier
};

using Templates = std::map<std::string, ByteVector>;

class Script {
 public:
  Script(MemoryBackend& memory, uint64_t seed) : memory_(memory), random_(seed) {
    memory.set_recording(false);
    FolderBackend store(memory, "store");
    make_store(store);
    machine_.emplace(memory);
    for (size_t i = 0; i < kDirectories; ++i) {
      FolderBackend directory(memory, folder_of(i));
      put_new_tier_identity(directory, machine_->options.identity.uuid,
                            machine_->options.host.host_id, random_uuid());
    }
    for (size_t i = 0; i < 2; ++i) change_table(i);
    machine_->start(table_);
    memory.set_recording(true);
    states_.push_back({0, {}, table_, {}});
  }

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      const uint64_t choice = random_.below(100);
      if (templates_.empty() || choice < 25) {
        import();
      } else if (choice < 35) {
        const std::string name = any();
        templates_.erase(name);
        remove_template(machine_->store, name, nobody);
      } else if (choice < 40) {
        gc(machine_->store);
      } else if (choice < 65) {
        machine_->tier->warm(machine_->segments_of(any()), kNoProgress);
      } else if (choice < 75) {
        CHECK(machine_->read(any()).size() > 0);
        machine_->tier->tend();
      } else if (choice < 83) {
        change_table(random_.below(kDirectories));
        machine_->tier->set_table(table_);
        states_.push_back({memory_.event_count(), templates_, table_, {}});
        machine_->tier->move_copies(false, kNoProgress);
        table_.finish_move();
        machine_->tier->set_table(table_);
      } else if (choice < 90) {
        machine_->tier->sweep();
      } else if (choice < 95) {
        give_up();
      } else if (choice < 98) {
        damage_and_mend();
      } else {
        damage_copies();
      }
      states_.push_back({memory_.event_count(), templates_, table_, {}});
    }
  }

  // After a crash behind so many events. What is durable then is what it was, or was to be.
  void check(MemoryBackend& after, size_t events) {
    size_t next = 0;
    while (next + 1 < states_.size() && states_[next].events < events) ++next;
    const State& to = states_[next];
    const State& from = states_[to.events == events || next == 0 ? next : next - 1];

    Machine machine(after);
    std::set<std::string> there;
    for (const TemplateInfo& info : list_templates(machine.store))
      if (info.state == "ready") there.insert(info.name);
    for (const auto& [name, disk] : from.templates)
      if (to.templates.contains(name)) CHECK(there.contains(name));
    const auto expected = [&](const std::string& name) {
      const auto found = from.templates.find(name);
      if (found != from.templates.end()) return &found->second;
      const auto coming = to.templates.find(name);
      return coming == to.templates.end() ? nullptr : &coming->second;
    };
    const auto is_damaged = [&](const std::string& name) {
      const auto segments = machine.segments_of(name);
      return std::ranges::any_of(segments, [&](const WantedSegment& segment) {
        return segment.name == from.damaged || segment.name == to.damaged;
      });
    };
    for (const std::string& name : there) {
      REQUIRE(expected(name) != nullptr);
      if (is_damaged(name)) continue;
      CHECK(read_whole(*open_image(machine.store, name)) == *expected(name));
      if (random_.chance(8))
        CHECK(verify_template(machine.store, name, [](uint64_t, uint64_t) {}).is_sound());
    }

    machine.start(random_.chance(2) ? from.table : to.table);
    const auto check_reads = [&] {
      for (const std::string& name : there)
        if (!is_damaged(name)) CHECK(machine.read(name) == *expected(name));
    };
    check_reads();
    machine.tier->tend();
    check_reads();
    // What is there is whole: only this test damages it.
    CHECK(machine.tier->check(kNoProgress).damaged <= damages_);
    gc(machine.store);
    std::set<Hash128> needed;
    for (const std::string& name : there)
      for (const WantedSegment& segment : machine.segments_of(name)) needed.insert(segment.name);
    for (const std::string& name : machine.store.list("imports"))
      remove_template(machine.store, name, nobody);
    const std::vector<Hash128> at_origin = list_segments(machine.store);
    if (!from.damaged && !to.damaged) CHECK(std::set(at_origin.begin(), at_origin.end()) == needed);
    for (const std::string& name : there)
      if (!is_damaged(name) && random_.chance(8))
        CHECK(verify_template(machine.store, name, [](uint64_t, uint64_t) {}).is_sound());
    machine.tier->sweep();
    for (const TierEntry& entry : to.table.directories)
      if (from.table.find(entry.uuid) != nullptr)
        for (const Hash128& name : list_segments(*machine.directory(entry)))
          CHECK(needed.contains(name));
    check_reads();
    machine.blocks.reset();
  }

 private:
  struct State {
    size_t events;
    Templates templates;
    TierTable table;
    std::optional<Hash128> damaged;
  };

  std::string any() {
    return std::next(templates_.begin(), static_cast<long>(random_.below(templates_.size())))
        ->first;
  }
  void change_table(size_t i) {
    FolderBackend directory(memory_, folder_of(i));
    const Uuid uuid = load_tier_identity(directory)->directory;
    const uint64_t weight = kTierWeightBytesMin * (1 + random_.below(4));
    if (table_.find(uuid) == nullptr) {
      const auto kind = random_.chance(5) ? TierEntry::Kind::kLocal : TierEntry::Kind::kSsd;
      table_.add({uuid, "/" + folder_of(i), weight, kind});
    } else if (random_.chance(2)) {
      table_.set_weight(uuid, weight);
    } else {
      table_.remove(uuid);
    }
    ++table_.generation;
  }
  // Of chunks that other templates may have too.
  void import() {
    const std::string name = fmt::format("t{}", ++imported_);
    ByteVector disk;
    for (uint64_t chunks = 1 + random_.below(4); chunks > 0; --chunks) {
      const uint64_t first = kChunkBlocks * random_.below(6);
      for (uint64_t i = 0; i < kChunkBlocks; ++i) {
        const ByteVector block = block_of(first + i + 1);
        disk.insert(disk.end(), block.begin(), block.end());
      }
    }
    templates_[name] = disk;
    import_disk(machine_->store, name, disk);
  }
  // All but a few copies are old, and there is no room.
  void give_up() {
    machine_->now_ns += 2 * machine_->options.keep_ns;
    CHECK(machine_->read(any()).size() > 0);
    TierTable small = table_;
    for (TierEntry& entry : small.directories) entry.weight_bytes = 4 * kChunkBlocks * kBlockBytes;
    machine_->tier->set_table(small);
    machine_->tier->warm(machine_->segments_of(any()), kNoProgress);
    machine_->tier->set_table(table_);
  }
  static void damage(Backend& backend, const Hash128& name, uint64_t block) {
    const auto object = backend.open(segment_path(name), Access::kWrite, Purpose::kData);
    object->write(block * kBlockBytes, ByteVector(600, std::byte{0xdd}));
    object->sync();
  }
  // As `template verify --repair` does it.
  void damage_and_mend() {
    const WantedSegment segment = machine_->segments_of(any()).at(0);
    const uint64_t block = random_.below(segment.block_count);
    const auto sound = machine_->tier->sound_copy(segment.name);
    // A copy may be from a time when more of it was given up.
    if (!sound || is_zero(Bytes(*sound).subspan(block * kBlockBytes, kBlockBytes))) return;
    const bool is_gone = *sound == content_of(machine_->store, segment.name) && random_.chance(2);
    states_.push_back({memory_.event_count(), templates_, table_, segment.name});
    if (is_gone)
      machine_->store.remove(segment_path(segment.name));
    else
      damage(machine_->store, segment.name, block);
    states_.push_back({memory_.event_count(), templates_, table_, segment.name});
    mend_segment(machine_->store, segment.name, *sound, machine_->options.identity.secret);
  }
  void damage_copies() {
    for (const TierEntry& entry : table_.directories) {
      const auto directory = machine_->directory(entry);
      for (const Hash128& name : list_segments(*directory)) {
        if (!random_.chance(3)) continue;
        damage(*directory, name, 0);
        ++damages_;
      }
    }
  }

  MemoryBackend& memory_;
  Random random_;
  TierTable table_;
  std::optional<Machine> machine_;
  Templates templates_;
  std::vector<State> states_;
  uint64_t imported_ = 0;
  uint64_t damages_ = 0;
};

}  // namespace

TEST_CASE("whenever a host crashes, its store is sound, and reads right with what its tier has") {
  Random random(test_seed());
  const uint64_t worlds = test_operations(kIsSanitized ? 1 : 6);
  uint64_t states = 0;
  for (uint64_t world = 0; world < worlds; ++world) {
    const uint64_t seed = random.below(UINT64_MAX);
    INFO("seed ", seed);
    MemoryBackend memory;
    Script script(memory, seed);
    script.run(25);
    constexpr MemoryBackend::Crash kKinds[] = {MemoryBackend::Crash::kKill,
                                               MemoryBackend::Crash::kLoseUnsynced,
                                               MemoryBackend::Crash::kRandom};
    for (CrashWalker walker(memory);; walker.advance()) {
      for (const auto kind : kKinds) {
        const size_t events = walker.event_count();
        INFO("crash ", static_cast<int>(kind), " behind event ", events, ": ",
             events == 0 ? "-" : memory.describe_event(events - 1));
        script.check(*walker.crash(kind, random.below(UINT64_MAX)), events);
        ++states;
      }
      if (walker.is_at_end()) break;
    }
  }
  MESSAGE(states << " states");
  CHECK(states > 100 * worlds);
}

}  // namespace tplstore::tier_crash_test
