// What a crash may do to a volume, at any point of a recorded life: process kills, power cuts that
// lose what was not synced, and power cuts that keep any of it, sector by sector.
//
// After each crash the volume is opened again. Every sector shows the value that was flushed last,
// or one written since; every version whose creation was acknowledged is there, with its bytes.
// Then the volume goes on working, and crashes again: stale frames of an earlier life, and a kill
// followed by a power cut.
#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <thread>

#include "forwarding_backend.h"
#include "volume_testing.h"

namespace tplstore::volume_crash_test {
namespace {

constexpr uint64_t kDiskBytes = 3 * kRegionBytes;
constexpr uint64_t kSectorsPerBlock = kBlockBytes / kSectorBytes;

// Blocks that the test touches: near each other, and in three regions.
constexpr uint64_t kBlocks[] = {0, 1, 2, 3, 5, 8, 1022, 1023, 1024, 1025, 1500, 2047, 2048, 3071};
constexpr uint64_t kBlockCount = std::size(kBlocks);
constexpr uint64_t kSectorCount = kBlockCount * kSectorsPerBlock;

uint64_t offset_of(uint64_t sector) {
  return kBlocks[sector / kSectorsPerBlock] * kBlockBytes +
         sector % kSectorsPerBlock * kSectorBytes;
}

// The content that stands for a value; 0 is zeroes.
ByteVector content_of(uint64_t sector, uint64_t value) {
  ByteVector bytes(kSectorBytes);
  if (value == 0) return bytes;
  for (size_t i = 0; i < kSectorBytes; i += 16) {
    std::memcpy(bytes.data() + i, &sector, 8);
    std::memcpy(bytes.data() + i + 8, &value, 8);
  }
  return bytes;
}

using Values = std::vector<uint64_t>;  // of all sectors

// What one life of a volume has promised, in terms of the events of its backend's trace.
class Life {
 public:
  Life(MemoryBackend& backend, const Uuid& uuid, const Values& values,
       const std::map<uint32_t, Values>& versions, uint64_t& next_value)
      : backend_(backend), uuid_(uuid), next_value_(next_value) {
    for (const uint64_t value : values) history_.push_back({{0, value}});
    for (const auto& [number, content] : versions) versions_[number] = {0, 0, content, {}};
    flushes_.push_back({0, lengths()});
  }

  void open() { volume_ = open_volume(backend_, uuid_); }
  void close() {
    const auto before = lengths();
    volume_->close();
    volume_.reset();
    flushes_.push_back({backend_.event_count(), before});
  }
  void crash() { volume_.reset(); }  // without closing

  void step(Random& random) {
    switch (random.below(29)) {
      case 0:
      case 1:
      case 2:
        flush();
        break;
      case 3:
        new_version(0);
        break;
      case 4:
        if (const uint32_t target = pick(random); target != 0 && random.chance(2))
          new_version(target);
        break;
      case 5:
        if (random.chance(2)) volume_->checkpoint();
        break;
      case 6:
        if (random.chance(3)) volume_->compact_log();
        break;
      case 7:
        if (random.chance(2)) {
          close();
          open();
        }
        break;
      case 8:
      case 9:
      case 10:
        discard(random);
        break;
      case 11:
      case 12:
        remove_version(random);
        break;
      case 13:
        if (random.chance(2)) volume_->space().run();
        break;
      case 14:
        fail_sync(random);
        break;
      default:
        write(random);
    }
  }

  // Compares a state after a crash behind `events` events; returns what it shows.
  Values check(MemoryBackend& after, uint64_t events, std::map<uint32_t, Values>& versions) const {
    const auto volume = open_volume(after, uuid_);
    const auto flushed = std::find_if(flushes_.rbegin(), flushes_.rend(),
                                      [&](const Flush& flush) { return flush.events <= events; });
    Values values;
    for (uint64_t sector = 0; sector < kSectorCount; ++sector) {
      const ByteVector bytes = read_bytes(*volume, 0, offset_of(sector), kSectorBytes);
      bool is_allowed = false;
      const auto& writes = history_[sector];
      for (size_t i = flushed->lengths[sector] - 1; i < writes.size(); ++i) {
        if (i >= flushed->lengths[sector] && writes[i].events >= events) break;
        if (bytes != content_of(sector, writes[i].value)) continue;
        is_allowed = true;
        values.push_back(writes[i].value);
        break;
      }
      if (is_allowed) continue;
      uint64_t words[2];
      std::memcpy(words, bytes.data(), sizeof words);
      INFO("sector " << sector << " shows sector " << words[0] << " value " << words[1]
                     << ", flushed was " << writes[flushed->lengths[sector] - 1].value);
      REQUIRE(is_allowed);
    }
    check_versions(*volume, events, versions);
    volume->space().run();
    volume->flush();
    check_no_leak(after, uuid_, kDiskBytes);
    return values;
  }

 private:
  struct Write {
    uint64_t events;  // before it began
    uint64_t value;
  };
  struct Flush {
    uint64_t events;              // when it was acknowledged
    std::vector<size_t> lengths;  // of the histories when it began
  };
  struct Removal {
    uint64_t begun = UINT64_MAX;
    uint64_t acknowledged = UINT64_MAX;
  };
  struct Version {
    uint64_t begun;
    uint64_t acknowledged;
    Values content;
    Removal removal;
  };

  std::vector<size_t> lengths() const {
    std::vector<size_t> lengths;
    for (const auto& writes : history_) lengths.push_back(writes.size());
    return lengths;
  }
  Values values() const {
    Values values;
    for (const auto& writes : history_) values.push_back(writes.back().value);
    return values;
  }
  // A version that is there, or 0.
  uint32_t pick(Random& random) const {
    std::vector<uint32_t> numbers;
    for (const auto& [number, version] : versions_)
      if (version.removal.begun == UINT64_MAX) numbers.push_back(number);
    return numbers.empty() ? 0 : numbers[random.below(numbers.size())];
  }
  void record(uint64_t sector, uint64_t value) {
    history_[sector].push_back({backend_.event_count(), value});
  }

  void check_versions(Volume& volume, uint64_t events, std::map<uint32_t, Values>& seen) const {
    for (const auto& [number, version] : versions_) {
      bool is_there = true;
      try {
        volume.versions().find(std::to_string(number));
      } catch (const Error&) {
        is_there = false;
      }
      INFO("version " << number);
      if (version.removal.acknowledged <= events) REQUIRE_FALSE(is_there);
      const bool may_be_gone = version.removal.begun < events;
      if (version.acknowledged <= events && !may_be_gone) REQUIRE(is_there);
      if (!is_there) continue;
      REQUIRE((version.begun == 0 || version.begun < events));
      for (uint64_t sector = 0; sector < kSectorCount; ++sector)
        REQUIRE(read_bytes(volume, number, offset_of(sector), kSectorBytes) ==
                content_of(sector, version.content[sector]));
      seen[number] = version.content;
    }
  }

  // A run of sectors that are neighbours on the disk.
  std::pair<uint64_t, uint64_t> run(Random& random) const {
    const uint64_t first = random.below(kSectorCount);
    uint64_t count = 1 + random.below(20);
    if (random.chance(3)) count = 1;
    uint64_t end = first + 1;
    while (end < kSectorCount && end - first < count &&
           offset_of(end) == offset_of(end - 1) + kSectorBytes)
      ++end;
    return {first, end - first};
  }

  void write(Random& random) {
    const auto [first, count] = run(random);
    ByteVector bytes;
    for (uint64_t sector = first; sector < first + count; ++sector) {
      const uint64_t value = ++next_value_;
      record(sector, value);
      const ByteVector content = content_of(sector, value);
      bytes.insert(bytes.end(), content.begin(), content.end());
    }
    const auto before = lengths();
    const bool durable = random.chance(8);
    volume_->write(offset_of(first), bytes, durable);
    if (durable) flushes_.push_back({backend_.event_count(), before});
  }
  void discard(Random& random) {
    const auto [first, count] = run(random);
    for (uint64_t sector = first; sector < first + count; ++sector) record(sector, 0);
    const auto before = lengths();
    const bool durable = random.chance(8);
    volume_->zero(offset_of(first), count * kSectorBytes, durable);
    if (durable) flushes_.push_back({backend_.event_count(), before});
  }
  void flush() {
    const auto before = lengths();
    volume_->flush();
    flushes_.push_back({backend_.event_count(), before});
  }
  // A sync fails and the process dies. What the volume shows when it is opened again stays.
  void fail_sync(Random& random) {
    constexpr const char* kParts[] = {"/data.", "/map", "/map."};
    const std::string part = volume_folder(uuid_) + kParts[random.below(std::size(kParts))];
    backend_.fail_next_sync(part, EIO, random.below(4));
    try {
      if (random.chance(2)) volume_->flush();
      if (random.chance(2)) volume_->checkpoint();
      if (random.chance(3)) volume_->compact_log();
    } catch (const Error&) {
    }
    backend_.fail_next_sync(part, 0);
    crash();
    open();
    for (uint64_t sector = 0; sector < kSectorCount; ++sector) {
      const ByteVector bytes = read_bytes(*volume_, 0, offset_of(sector), kSectorBytes);
      const auto& writes = history_[sector];
      const auto oldest =
          writes.begin() + static_cast<ptrdiff_t>(flushes_.back().lengths[sector]) - 1;
      const auto shown = std::find_if(oldest, writes.end(), [&](const Write& write) {
        return bytes == content_of(sector, write.value);
      });
      INFO("sector " << sector << " after a failed sync of " << part);
      REQUIRE(shown != writes.end());
      record(sector, shown->value);
    }
    flushes_.push_back({backend_.event_count(), lengths()});
  }
  // A new version, or a rollback to `target`.
  void new_version(uint32_t target) {
    const uint64_t begun = backend_.event_count();
    const Values content = values();
    std::vector<size_t> before = lengths();
    if (target != 0) {
      for (uint64_t sector = 0; sector < kSectorCount; ++sector)
        record(sector, versions_.at(target).content[sector]);
      before = lengths();
    }
    const VersionInfo frozen = target == 0 ? volume_->versions().create({})
                                           : volume_->versions().rollback(std::to_string(target));
    versions_[frozen.number] = {begun == 0 ? 1 : begun, backend_.event_count(), content, {}};
    flushes_.push_back({backend_.event_count(), before});
  }
  void remove_version(Random& random) {
    const uint32_t number = pick(random);
    if (number == 0) return;
    const auto before = lengths();
    Removal& removal = versions_.at(number).removal;
    removal.begun = backend_.event_count();
    volume_->versions().remove({std::to_string(number)});
    removal.acknowledged = backend_.event_count();
    flushes_.push_back({removal.acknowledged, before});
  }

  MemoryBackend& backend_;
  const Uuid uuid_;
  uint64_t& next_value_;
  std::unique_ptr<Volume> volume_;
  std::vector<std::vector<Write>> history_;
  std::vector<Flush> flushes_;
  std::map<uint32_t, Version> versions_;
};

constexpr MemoryBackend::Crash kKinds[] = {
    MemoryBackend::Crash::kKill, MemoryBackend::Crash::kLoseUnsynced, MemoryBackend::Crash::kRandom,
    MemoryBackend::Crash::kRandom};

struct Counts {
  uint64_t states = 0;
};

// Works on a state after a crash, crashes it at some points, and so on.
void live_on(MemoryBackend& backend, const Uuid& uuid, const Values& values,
             const std::map<uint32_t, Values>& versions, uint64_t next_value, unsigned depth,
             Random& random, Counts& counts) {
  Life life(backend, uuid, values, versions, next_value);
  life.open();
  const uint64_t steps = 3 + random.below(12);
  for (uint64_t i = 0; i < steps; ++i) life.step(random);
  life.crash();
  for (unsigned i = 0; i < 4; ++i) {
    const uint64_t events = random.below(backend.event_count() + 1);
    const auto kind = kKinds[random.below(std::size(kKinds))];
    const auto after = backend.crash(events, kind, random.below(UINT64_MAX));
    INFO("life of depth " << depth << ", crash " << static_cast<int>(kind) << " behind event "
                          << events << " of " << backend.event_count());
    std::map<uint32_t, Values> seen;
    const Values shown = life.check(*after, events, seen);
    ++counts.states;
    // check() has opened and not closed it: that was a life as well, which crashes too.
    if (depth < 3 && random.chance(2)) {
      const auto again =
          after->crash(after->event_count(), kKinds[random.below(4)], random.below(UINT64_MAX));
      live_on(*again, uuid, shown, seen, next_value, depth + 1, random, counts);
    }
  }
}

}  // namespace

TEST_CASE("after a crash each sector shows what was flushed last or something written since") {
  Random random(test_seed());
  Counts counts;
  for (unsigned round = 0; round < (kIsSanitized ? 1u : 4u); ++round) {
    const auto backend = memory_store();
    const Uuid uuid = random_uuid();
    create_volume(*backend, uuid, kDiskBytes, nullptr);
    backend->set_recording(false);
    backend->set_recording(true);
    uint64_t next_value = 0;
    Life life(*backend, uuid, Values(kSectorCount), {}, next_value);
    life.open();
    for (unsigned i = 0; i < 90; ++i) life.step(random);
    life.close();

    for (CrashWalker walker(*backend);; walker.advance()) {
      const uint64_t events = walker.event_count();
      for (const auto kind : kKinds) {
        INFO("round " << round << ", crash " << static_cast<int>(kind) << " behind event " << events
                      << ": "
                      << (events == 0 ? std::string("-") : backend->describe_event(events - 1)));
        const auto after = walker.crash(kind, random.below(UINT64_MAX));
        std::map<uint32_t, Values> seen;
        const Values shown = life.check(*after, events, seen);
        ++counts.states;
        if (random.chance(12)) {
          const auto again =
              after->crash(after->event_count(), kKinds[random.below(4)], random.below(UINT64_MAX));
          live_on(*again, uuid, shown, seen, next_value, 1, random, counts);
        }
      }
      if (walker.is_at_end()) break;
    }
  }
  MESSAGE(counts.states << " states");
  CHECK(counts.states > 2000);
}

// A small life in which everything is synced, step by step. Blocks hold one value each.
class ScriptedLife {
 public:
  ScriptedLife(MemoryBackend& backend, const Uuid& uuid)
      : backend_(backend), uuid_(uuid), allowed_(kBlocks, {0}) {}

  void run() {
    volume_ = open_volume(backend_, uuid_);
    write(0, 1);
    write(1, 2);
    flush();
    write(0, 3);
    flush();
    write(0, 4);
    write(2, 5);
    flush();
    volume_->versions().create({});
    write(0, 6);
    flush();
    volume_->checkpoint();
    write(3, 7);
    flush();
    volume_->compact_log();
    write(0, 8);
    flush();
    volume_->versions().remove({"1"});
    volume_->space().run();
    volume_->checkpoint();
    write(1, 9);
    flush();
    close();
  }
  void close() {
    volume_->close();
    volume_.reset();
  }
  void crash() { volume_.reset(); }

  // What a block shows; it may be what was flushed last, or was written since.
  std::vector<uint64_t> shown(MemoryBackend& backend) const {
    const auto volume = open_volume(backend, uuid_);
    std::vector<uint64_t> values;
    for (uint64_t block = 0; block < kBlocks; ++block) {
      const ByteVector bytes = read_bytes(*volume, 0, block * kBlockBytes, kSectorBytes);
      for (const uint64_t value : allowed_[block])
        if (bytes == content_of(block, value)) values.push_back(value);
      INFO("block " << block);
      REQUIRE(values.size() == block + 1);
    }
    volume->flush();
    return values;
  }

 private:
  static constexpr uint64_t kBlocks = 4;

  void write(uint64_t block, uint64_t value) {
    allowed_[block].push_back(value);
    ByteVector bytes;
    for (unsigned i = 0; i < kSectorsPerBlock; ++i) {
      const ByteVector content = content_of(block, value);
      bytes.insert(bytes.end(), content.begin(), content.end());
    }
    volume_->write(block * kBlockBytes, bytes, false);
  }
  void flush() {
    volume_->flush();
    for (auto& values : allowed_) values.erase(values.begin(), values.end() - 1);
  }

  MemoryBackend& backend_;
  const Uuid uuid_;
  std::unique_ptr<Volume> volume_;
  std::vector<std::vector<uint64_t>> allowed_;
};

TEST_CASE("whatever sync fails, what the volume shows when it is opened again is on the disk") {
  unsigned failed_count = 0;
  for (unsigned skipped = 0;; ++skipped) {
    const auto backend = memory_store();
    const Uuid uuid = random_uuid();
    create_volume(*backend, uuid, kDiskBytes, nullptr);
    backend->set_recording(false);
    backend->set_recording(true);
    backend->fail_next_sync(volume_folder(uuid) + "/", EIO, skipped);
    ScriptedLife life(*backend, uuid);
    try {
      life.run();
    } catch (const Error&) {
    }
    life.crash();
    std::string failed;
    for (size_t i = 0; i < backend->event_count() && failed.empty(); ++i)
      if (backend->describe_event(i).starts_with("failed")) failed = backend->describe_event(i);
    if (failed.empty()) break;
    ++failed_count;
    INFO(failed << ", behind " << skipped << " others");
    // A kill on the way changes nothing, and the power fails when the volume has been served.
    const auto values = life.shown(*backend);
    for (const auto kind : kKinds) {
      const auto after = backend->crash(backend->event_count(), kind, skipped);
      CHECK(life.shown(*after) == values);
    }
  }
  CHECK(failed_count > 25);
}

TEST_CASE("what is served after a kill outlives a power cut") {
  // The process may be killed anywhere: what it wrote is in the page cache only. The next one
  // serves that, and a flush which has nothing to write says that it is durable.
  const auto backend = memory_store();
  const Uuid uuid = random_uuid();
  create_volume(*backend, uuid, kDiskBytes, nullptr);
  backend->set_recording(false);
  backend->set_recording(true);
  ScriptedLife life(*backend, uuid);
  life.run();
  for (CrashWalker walker(*backend);; walker.advance()) {
    INFO("killed behind event " << walker.event_count());
    const auto killed = walker.crash(MemoryBackend::Crash::kKill, 0);
    const auto content = [&](MemoryBackend& at) {
      const auto volume = open_volume(at, uuid);
      const ByteVector bytes = read_bytes(*volume, 0, 0, 4 * kBlockBytes);
      volume->flush();
      // Makes it durable, too, which logs are there.
      at.sync_folder(volume_folder(uuid));
      return bytes;
    };
    const ByteVector served = content(*killed);
    const auto after = killed->crash(killed->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
    const ByteVector shown = content(*after);
    REQUIRE(shown == served);
    if (walker.is_at_end()) break;
  }
}

TEST_CASE("a crash under many writers loses nothing that any of them flushed") {
  // Sector s belongs to thread s % kThreads, so the threads meet in every block. What each has
  // noted of its own sectors holds whatever the others do.
  constexpr unsigned kThreads = 4;
  constexpr uint64_t kSectors = 256;
  const uint64_t seed = test_seed();
  uint64_t states = 0;
  for (unsigned round = 0; round < (kIsSanitized ? 1u : 4u); ++round) {
    const auto backend = memory_store();
    const Uuid uuid = random_uuid();
    create_volume(*backend, uuid, kDiskBytes, nullptr);
    backend->set_recording(false);
    backend->set_recording(true);
    struct Write {
      uint64_t begun;
      uint64_t value;
    };
    struct Flush {
      uint64_t acknowledged;
      std::vector<size_t> lengths;
    };
    std::vector<std::vector<Write>> history(kSectors, {{0, 0}});
    std::vector<std::vector<Flush>> flushes(kThreads);
    {
      const auto volume = open_volume(*backend, uuid);
      std::vector<std::thread> threads;
      for (unsigned t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
          Random random(seed + 10 * round + t);
          const auto lengths = [&] {
            std::vector<size_t> sizes;
            for (uint64_t s = t; s < kSectors; s += kThreads) sizes.push_back(history[s].size());
            return sizes;
          };
          for (uint64_t i = 1; i <= 150; ++i) {
            const uint64_t s = random.below(kSectors / kThreads) * kThreads + t;
            history[s].push_back({backend->event_count(), i});
            const auto before = lengths();
            const bool durable = random.chance(8);
            volume->write(s * kSectorBytes, content_of(s, i), durable);
            if (!durable && !random.chance(10)) continue;
            if (!durable) volume->flush();
            if (random.chance(6)) volume->versions().create({});
            flushes[t].push_back({backend->event_count(), before});
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
    Random random(seed + round);
    for (CrashWalker walker(*backend); !walker.is_at_end(); walker.advance()) {
      const uint64_t events = walker.event_count();
      const auto after =
          walker.crash(kKinds[random.below(std::size(kKinds))], random.below(UINT64_MAX));
      const auto volume = open_volume(*after, uuid);
      const ByteVector bytes = read_bytes(*volume, 0, 0, kSectors * kSectorBytes);
      for (uint64_t s = 0; s < kSectors; ++s) {
        const auto& acknowledged = flushes[s % kThreads];
        const auto flushed = std::find_if(acknowledged.rbegin(), acknowledged.rend(),
                                          [&](const Flush& f) { return f.acknowledged <= events; });
        const size_t first =
            flushed == acknowledged.rend() ? 0 : flushed->lengths[s / kThreads] - 1;
        const Bytes shown = Bytes(bytes).subspan(s * kSectorBytes, kSectorBytes);
        bool is_allowed = false;
        for (size_t i = first; i < history[s].size() && !is_allowed; ++i)
          is_allowed = (i == first || history[s][i].begun < events) &&
                       std::ranges::equal(shown, content_of(s, history[s][i].value));
        INFO("round " << round << ", sector " << s << " behind event " << events);
        REQUIRE(is_allowed);
      }
      ++states;
    }
  }
  MESSAGE(states << " states");
}

TEST_CASE("a crash while a volume is created or removed leaves it whole or not there") {
  const uint64_t seed = test_seed();
  auto owned = memory_store();
  MemoryBackend& backend = *owned;
  backend.set_recording(false);
  backend.set_recording(true);
  uint64_t created = 0;
  uint64_t removing = 0;
  {
    Store store(std::make_unique<ForwardingBackend>(backend), {});
    store.create_volume("vm1", kDiskBytes, "");
    created = backend.event_count();
    removing = created;
    store.remove_volume("vm1");
  }
  uint64_t states = 0;
  for (CrashWalker walker(backend);; walker.advance()) {
    for (const auto kind : kKinds) {
      INFO("crash " << static_cast<int>(kind) << " behind event " << walker.event_count());
      auto after = walker.crash(kind, seed + walker.event_count());
      Store store(std::move(after), {});
      const bool is_listed = !store.list_volumes().empty();
      if (walker.event_count() == created) CHECK(is_listed);
      if (is_listed) {
        const auto disk = store.open_export("vm1", test_peer());
        ByteVector bytes(kBlockBytes);
        disk->read(kDiskBytes - kBlockBytes, bytes);
        CHECK(is_zero(bytes));
        disk->write(0, content_of(1, 1), true);
      } else {
        // What is left of it is in nobody's way, and gc takes it.
        store.remove_orphans();
        CHECK(store.backend().list("volumes").empty());
        store.create_volume("vm1", kDiskBytes, "");
      }
      ++states;
    }
    if (walker.is_at_end()) break;
  }
  CHECK(removing > 0);
  CHECK(states > 40);
}

}  // namespace tplstore::volume_crash_test
