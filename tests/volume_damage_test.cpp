// Damaged metadata: every byte of a small volume's header, map and log flipped, and each of them
// cut at every length. What comes out is a clear error or the right bytes, never anything else.
#include <algorithm>
#include <map>

#include "volume_testing.h"

namespace tplstore::volume_damage_test {
namespace {

constexpr uint64_t kDiskBytes = 2 * kRegionBytes;
// A sample of the bytes has to do; each run takes another one.
constexpr uint64_t kStepMax = kIsSanitized ? 120 : 10;

// What is compared: two stretches where the writes go.
constexpr uint64_t kStretches[] = {0, kRegionBytes - 8 * kBlockBytes};
constexpr uint64_t kStretchBytes = 16 * kBlockBytes;

// The bytes of all versions that somebody needs; 0 is current.
using Content = std::map<uint32_t, ByteVector>;

Content read_all(Volume& volume) {
  Content content;
  std::vector<uint32_t> numbers{0};
  for (const VersionInfo& version : volume.versions().list())
    if (!version.is_current && (!version.is_hidden || !version.forks.empty()))
      numbers.push_back(version.number);
  for (const uint32_t number : numbers)
    for (const uint64_t offset : kStretches) {
      const ByteVector bytes = read_bytes(volume, number, offset, kStretchBytes);
      content[number].insert(content[number].end(), bytes.begin(), bytes.end());
    }
  return content;
}

struct Victim {
  std::unique_ptr<MemoryBackend> backend;
  Uuid uuid = random_uuid();
  Content content;
  Content content_before_last_batch;
  uint64_t last_batch = UINT64_MAX;  // where it begins in the log
  std::string log;
  uint64_t log_tail = 0;

  std::string folder() const { return volume_folder(uuid); }
};

Victim make_victim(bool is_closed, Random& random) {
  Victim victim;
  victim.backend = memory_store();
  create_volume(*victim.backend, victim.uuid, kDiskBytes, nullptr);
  auto volume = open_volume(*victim.backend, victim.uuid);
  const auto write = [&](unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      ByteVector bytes(kBlockBytes * (1 + random.below(2)));
      random.fill(bytes);
      const uint64_t offset = kStretches[random.below(2)] + random.below(14) * kBlockBytes;
      volume->write(offset, bytes, false);
    }
  };
  for (unsigned version = 0; version < 3; ++version) {
    write(5);
    volume->versions().create({version == 1 ? "named" : "", "", {}});
    if (version == 1) volume->compact_log();
    if (version == 0) volume->checkpoint();
  }
  write(3);
  volume->zero(kStretches[1], 3 * kBlockBytes, true);
  // A version that only a fork needs, and free ranges.
  volume->forks().create("3", random_uuid());
  if (is_closed) volume->checkpoint();
  volume->versions().remove({"1", "3"});
  write(2);
  volume->flush();
  if (!is_closed) {
    victim.content_before_last_batch = read_all(*volume);
    victim.last_batch = volume->stats().map.log_bytes;
    // Blocks that nothing was written to yet: overwriting others would not be in the log.
    ByteVector bytes(kBlockBytes);
    for (const uint64_t offset : kStretches) {
      random.fill(bytes);
      volume->write(offset + 15 * kBlockBytes, bytes, false);
    }
    volume->flush();
  }
  victim.content = read_all(*volume);
  victim.log = fmt::format("{}/map.{}", victim.folder(), volume->stats().map.log_generation);
  if (is_closed) volume->close();
  victim.log_tail = volume->stats().map.log_bytes;
  volume.reset();
  victim.backend =
      victim.backend->crash(victim.backend->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
  return victim;
}

// Opens the damaged volume, in both ways, and compares what it shows.
void check(const Victim& victim, MemoryBackend& damaged, bool may_lose_last_batch) {
  for (const bool writes : {false, true}) {
    try {
      const auto volume =
          writes ? open_volume(damaged, victim.uuid)
                 : Volume::open_for_reading(environment_on(damaged), victim.uuid, "vm");
      const Content content = read_all(*volume);
      const bool is_right = content == victim.content ||
                            (may_lose_last_batch && content == victim.content_before_last_batch);
      REQUIRE(is_right);
      if (!writes) continue;
      // Nothing that is needed is given back.
      volume->space().run();
      REQUIRE(read_all(*volume) == content);
      volume->close();
    } catch (const Error& error) {
      const bool is_clear = error.code() == EIO || error.code() == EINVAL;
      INFO(error.what());
      REQUIRE(is_clear);
      REQUIRE(std::string(error.what()).size() > 20);
    }
  }
}

void flip_every_byte(const Victim& victim, const std::string& name, uint64_t used, Random& random) {
  const ByteVector content = victim.backend->content(name);
  // Behind what is used there are only zeroes: a few of those.
  for (uint64_t at = 0; at < content.size();
       at += at < used ? 1 + random.below(kStepMax) : 1 + random.below(8000)) {
    ByteVector bytes = content;
    bytes[at] ^= static_cast<std::byte>(1 + random.below(255));
    const auto damaged = victim.backend->clone();
    damaged->set_content(name, bytes);
    INFO(name << ": byte " << at << " of " << content.size() << " flipped");
    check(victim, *damaged, name == victim.log && at >= victim.last_batch);
  }
}

void cut_at_every_length(const Victim& victim, const std::string& name, uint64_t used,
                         Random& random) {
  const ByteVector content = victim.backend->content(name);
  for (uint64_t length = 0; length < content.size();
       length += length < used ? 1 + random.below(kStepMax) : 1 + random.below(8000)) {
    const auto damaged = victim.backend->clone();
    damaged->set_content(name, Bytes(content).first(length));
    INFO(name << ": cut to " << length << " of " << content.size());
    check(victim, *damaged, name == victim.log && length >= victim.last_batch);
  }
}

void damage_all(bool is_closed) {
  Random random(test_seed());
  const Victim victim = make_victim(is_closed, random);
  {
    const auto clone = victim.backend->clone();
    const auto volume = open_volume(*clone, victim.uuid);
    REQUIRE(read_all(*volume) == victim.content);
  }
  for (const std::string& name :
       {header_name(victim.folder()), victim.folder() + "/map", victim.log}) {
    const uint64_t used = name == victim.log ? victim.log_tail : 2 * kSlotBytes;
    flip_every_byte(victim, name, used, random);
    cut_at_every_length(victim, name, used, random);
  }
}

}  // namespace

TEST_CASE("damage to a cleanly closed volume is an error or does not matter") { damage_all(true); }

TEST_CASE("damage to a volume that was not closed is the same, but for its last batch") {
  damage_all(false);
}

TEST_CASE("blocks of a data file that was cut short are errors, and no zeroes") {
  const auto backend = memory_store();
  const Uuid uuid = random_uuid();
  constexpr uint64_t kBytes = 4 * kBlockBytes + kSectorBytes;  // the last block is a part of one
  create_volume(*backend, uuid, kBytes, nullptr);
  const ByteVector block(kBlockBytes, std::byte{0x5a});
  const Bytes sector = Bytes(block).first(kSectorBytes);
  auto volume = open_volume(*backend, uuid);
  for (const uint64_t offset : {uint64_t{0}, uint64_t{kBlockBytes}})
    volume->write(offset, block, false);
  volume->write(4 * kBlockBytes, sector, false);
  volume->close();
  volume.reset();
  const std::string name = DataFiles::name_of(volume_folder(uuid), 1);
  const ByteVector whole = backend->content(name);
  for (const uint64_t length : {whole.size(), whole.size() - 1, whole.size() - kBlockBytes,
                                size_t{kBlockBytes + 100}, size_t{0}}) {
    CAPTURE(length);
    backend->set_content(name, Bytes(whole).first(length));
    volume = open_volume(*backend, uuid);
    for (uint64_t offset = 0; offset < kBytes; offset += kSectorBytes) {
      CAPTURE(offset);
      const bool is_mapped = offset < 2 * kBlockBytes || offset >= 4 * kBlockBytes;
      const bool is_lost = is_mapped && offset + kSectorBytes > length;
      ByteVector bytes(kSectorBytes, std::byte{1});
      if (is_lost) {
        CHECK_THROWS_AS(volume->read(0, offset, bytes), Error);
      } else {
        volume->read(0, offset, bytes);
        CHECK(bytes == (is_mapped ? ByteVector(sector.begin(), sector.end())
                                  : ByteVector(kSectorBytes, std::byte{0})));
      }
    }
    volume.reset();
  }
}

TEST_CASE("a missing object of a volume is a clear error") {
  Random random(test_seed());
  const Victim victim = make_victim(true, random);
  for (const std::string& name : victim.backend->list(victim.folder())) {
    const auto damaged = victim.backend->clone();
    damaged->remove(victim.folder() + "/" + name);
    INFO(name);
    try {
      const auto volume = open_volume(*damaged, victim.uuid);
      const Content content = read_all(*volume);
      CHECK(content == victim.content);
    } catch (const Error& error) {
      INFO(error.what());
      CHECK(std::string(error.what()).find(name) != std::string::npos);
    }
  }
}

TEST_CASE("of the header and of the map's pointer either slot may be lost") {
  Random random(test_seed());
  for (const bool is_closed : {true, false}) {
    const Victim victim = make_victim(is_closed, random);
    for (const std::string& name : {header_name(victim.folder()), victim.folder() + "/map"}) {
      const ByteVector content = victim.backend->content(name);
      REQUIRE(content.size() == 2 * kSlotBytes);
      for (uint64_t slot = 0; slot < 2; ++slot) {
        INFO(name << ", slot " << slot << (is_closed ? ", closed" : ", not closed"));
        ByteVector bytes = content;
        std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(slot * kSlotBytes), kSlotBytes,
                    std::byte{0xee});
        const auto damaged = victim.backend->clone();
        damaged->set_content(name, bytes);
        const Content shown = read_all(*open_volume(*damaged, victim.uuid));
        CHECK(shown == victim.content);
      }
      // And each says the same.
      CHECK(
          std::equal(content.begin(), content.begin() + kSlotBytes, content.begin() + kSlotBytes));
    }
  }
}

}  // namespace tplstore::volume_damage_test
