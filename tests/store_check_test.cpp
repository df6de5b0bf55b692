// What check finds of faults that carry good checksums, that it finds none in stores that were
// merely used, and that no damage keeps it from ending.
#include "store/store_check.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "map/map_check.h"
#include "store_testing.h"
#include "volume/volume_check.h"

namespace tplstore::store_check_test {
namespace {

constexpr uint64_t kSmallDiskBytes = 3 * kRegionBytes;

std::unique_ptr<Backend> no_location(const std::string& location) {
  fail(ENOENT, location, "is not there");
}

CheckReport check(Backend& backend, bool reads_data = false) {
  CheckOptions options;
  options.reads_data = reads_data;
  return check_store(backend, no_location, options);
}

std::string text_of(const CheckReport& report) {
  std::string text;
  for (const Finding& finding : report.findings.all()) {
    text += finding.text();
    for (const LostRange& lost : finding.lost)
      text += fmt::format(" | lost {} {}+{}", lost.disk, lost.offset / kBlockBytes,
                          lost.length / kBlockBytes);
    text += "\n";
  }
  return text;
}

void require_sound(Backend& backend) {
  const CheckReport report = check(backend);
  INFO(text_of(report));
  REQUIRE(report.findings.faults() == 0);
}

// vm with blocks 0 to 9 of version 1, of which version 2, current, has written 5 to 9 anew; closed.
struct MapFixture {
  std::unique_ptr<MemoryBackend> backend = memory_store();
  Uuid uuid = random_uuid();
  std::string folder = volume_folder(uuid);

  MapFixture() {
    create_volume(*backend, uuid, kSmallDiskBytes, nullptr);
    backend->put_new("names/vm", as_bytes(uuid.text()));
    auto volume = open_volume(*backend, uuid);
    volume->write(0, filled(10 * kBlockBytes, 1), false);
    volume->versions().create({});
    volume->write(5 * kBlockBytes, filled(5 * kBlockBytes, 2), false);
    volume->close();
    volume.reset();
    require_sound(*backend);
  }
  // Changes the map in a way that no volume does, and closes it with good checksums.
  void plant(const std::function<void(VolumeMap&)>& change) {
    const auto map = VolumeMap::open(*backend, folder, uuid, Access::kWrite);
    map->start_writing([] {}, [] {});
    change(*map);
    map->close();
  }
  void assign(VolumeMap& map, const Run& run) {
    LogReservation reserved(map, LogReservation::records_for(run.first, run.count));
    map.assign(run, reserved);
  }
  std::string found() { return text_of(check(*backend)); }
};

bool has(const std::string& text, const std::string& part) {
  INFO(text);
  CHECK(text.find(part) != std::string::npos);
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("cells that are free though versions have them are found, with who loses what") {
  MapFixture f;
  f.plant([&](VolumeMap& map) {
    map.update_free_ranges([](FreeRanges& free) { free.add({1, 6, 2}); });
    f.assign(map, {{100, 1}, kSourceZero});
  });
  const std::string found = f.found();
  has(found, "6 blocks that versions have count as free");
  has(found, "lost vm@1 2+6 | lost vm 2+3");
}

TEST_CASE("a whole file that counts as free though versions have some of it is found") {
  MapFixture f;
  f.plant([&](VolumeMap& map) {
    map.update_free_ranges([](FreeRanges& free) { free.add({1, 0, 0}); });
    f.assign(map, {{100, 1}, kSourceZero});
  });
  has(f.found(), "10 blocks that versions have count as free");
}

TEST_CASE("blocks from versions that there are not are found") {
  MapFixture f;
  f.plant([&](VolumeMap& map) { f.assign(map, {{20, 3}, 7}); });
  has(f.found(), "3 blocks of version 2 come from versions that it cannot have them from");
}

TEST_CASE("blocks beyond the end of the disk are found") {
  MapFixture f;
  f.plant([&](VolumeMap& map) { f.assign(map, {{kSmallDiskBytes / kBlockBytes + 5, 2}, 2}); });
  const std::string found = f.found();
  has(found, "2 blocks of version 2 are beyond its end");
  has(found, "data.2: was cut short");
}

TEST_CASE("books that do not tell how many cells a file has are found") {
  MapFixture f;
  // A version cannot get back what it has from another one without writing it: nothing counts that.
  f.plant([&](VolumeMap& map) { f.assign(map, {{20, 3}, 1}); });
  has(f.found(), "data.1 has 13 blocks that versions have, but 10 are counted");
}

TEST_CASE("a size that the header has otherwise is found, and opening mends it") {
  MapFixture f;
  f.plant([](VolumeMap& map) { map.change_versions().resize(2 * kSmallDiskBytes); });
  has(f.found(), "says that the volume has 12582912 bytes, and its map 25165824");
}

TEST_CASE("a volume that another process has open is not judged by its files") {
  MapFixture f;
  const auto volume = open_volume(*f.backend, f.uuid);
  volume->write(30 * kBlockBytes, filled(kBlockBytes, 3), false);
  const CheckReport report = check(*f.backend);
  INFO(text_of(report));
  CHECK(report.findings.faults() == 0);
  has(text_of(report), "is open at a server");
}

TEST_CASE("what is given back is what no version has, and nothing else") {
  MapFixture f;
  const std::string file = DataFiles::name_of(f.folder, 1);
  const ByteVector before = f.backend->content(file);
  {
    const auto object = f.backend->open(file, Access::kWrite, Purpose::kData);
    object->write(200 * kBlockBytes, filled(2 * kBlockBytes, 9));
    object->write(kRegionBytes, filled(kBlockBytes, 9));
  }
  f.backend->create(DataFiles::name_of(f.folder, 9), kSmallDiskBytes, Purpose::kData);
  has(f.found(), "12.0 KiB in it are of no version");
  has(f.found(), "data.9: is of no version of the volume");
  {
    const auto volume = open_volume(*f.backend, f.uuid);
    CHECK(error_code([&] { give_back_lone_cells(*f.backend, f.uuid, "vm"); }) == EBUSY);
    volume->close();
  }
  {
    // Who opens it has the lock before the header says so.
    const auto lock = f.backend->try_lock(lock_name(f.folder), LockMode::kExclusive);
    CHECK(error_code([&] { give_back_lone_cells(*f.backend, f.uuid, "vm"); }) == EBUSY);
  }
  f.backend->set_kind({"NFS", StorageKind::Reach::kHosts});
  CHECK(error_code([&] { give_back_lone_cells(*f.backend, f.uuid, "vm"); }) == EBUSY);
  f.backend->set_kind({"memory"});
  give_back_lone_cells(*f.backend, f.uuid, "vm");
  CHECK(f.backend->content(file) == before);
  require_sound(*f.backend);
}

TEST_CASE("a file with data of a version behind the last one stays: its map may be elsewhere") {
  MapFixture f;
  const std::string later = DataFiles::name_of(f.folder, 9);
  f.backend->create(later, kSmallDiskBytes, Purpose::kData)->write(0, filled(kBlockBytes, 9));
  has(f.found(), "data.9: has data, though the last version is 2");
  give_back_lone_cells(*f.backend, f.uuid, "vm");
  CHECK(f.backend->content(later)[0] == std::byte{9});
}

TEST_CASE("nothing is given back of a volume whose map is damaged") {
  MapFixture f;
  const std::string file = DataFiles::name_of(f.folder, 1);
  f.backend->open(file, Access::kWrite, Purpose::kData)->write(200 * kBlockBytes, filled(4096, 9));
  f.plant([&](VolumeMap& map) { f.assign(map, {{20, 3}, 7}); });
  const ByteVector before = f.backend->content(file);
  CHECK(error_code([&] { give_back_lone_cells(*f.backend, f.uuid, "vm"); }) == EIO);
  CHECK(f.backend->content(file) == before);
}

TEST_CASE(
    "what says that a volume is kept, what is of one moment and the configuration are looked at") {
  MapFixture f;
  const auto finds = [&](const std::string& object, std::string_view content,
                         const std::string& problem) {
    f.backend->set_content(object, as_bytes(content));
    has(f.found(), object + ": " + problem);
    f.backend->remove(object);
    require_sound(*f.backend);
  };
  const std::string other = random_uuid().text();
  const std::string_view removed = "{\"name\":\"vm2\",\"removed_ns\":1,\"until_ns\":2}";
  finds("removed/" + other, removed, "is of a volume that is not there");
  finds("removed/" + other, "{", "damaged: it does not say what was removed");
  finds("sets/" + other, f.uuid.text() + " 1\n", "is damaged, so that nobody can tell");
  finds("config.1", "[]", "damaged: it is no JSON object; remove it");
}

TEST_CASE("what is made, restored or removed while a store is looked at is no fault") {
  const auto memory = memory_store();
  Store store(std::make_unique<ForwardingBackend>(*memory), StoreOptions());
  ForwardingBackend between(*memory);
  store.create_volume("kept", kSmallDiskBytes, "");
  store.create_volume("gone", kSmallDiskBytes, "");
  store.create_version("kept", {});
  store.remove_volume("kept", Store::IfDamaged::kKeep, 3600);
  size_t lists = 0;
  between.around = [&](ForwardingBackend::Call call, const std::string& name,
                       const std::function<void()>& go_on) {
    const bool is_it = call == ForwardingBackend::Call::kList && name == "volumes";
    if (is_it && lists++ == 0) {
      store.create_volume("new", kSmallDiskBytes, "");
      store.restore_volume("kept");
    }
    go_on();
    if (is_it && lists == 1) store.remove_volume("gone");
  };
  require_sound(between);
  CHECK(lists == 1);
}

// A store with volumes, versions, forks and a template, as use makes it.
struct UsedStore {
  std::unique_ptr<MemoryBackend> memory = memory_store();
  std::unique_ptr<Store> store;
  Random& random;

  explicit UsedStore(Random& random_of) : random(random_of) {
    ByteVector image(40 * kBlockBytes);
    random.fill(image);
    import_test_template(*memory, "golden", image);
    store = std::make_unique<Store>(std::make_unique<ForwardingBackend>(*memory), StoreOptions());
    store->create_volume("vm1", kSmallDiskBytes, "golden");
    store->create_volume("vm2", kSmallDiskBytes, "");
  }

  void scribble(const std::string& volume, unsigned count) {
    const auto disk = store->open_export(volume, new_peer());
    for (unsigned i = 0; i < count; ++i) {
      const uint64_t blocks = 1 + random.below(40);
      const uint64_t offset = random.below(kSmallDiskBytes / kBlockBytes - blocks) * kBlockBytes;
      switch (random.below(6)) {
        case 0:
          disk->trim(offset, blocks * kBlockBytes, false);
          break;
        case 1:
          disk->zero(offset, blocks * kBlockBytes, false);
          break;
        default:
          disk->write(offset, filled(blocks * kBlockBytes, 1 + static_cast<int>(random.below(250))),
                      false);
      }
    }
    disk->flush();
    if (random.chance(4)) store->checkpoint(random.chance(2));
  }
  // Those that can be removed or forked.
  std::vector<std::string> versions(const std::string& volume) {
    std::vector<std::string> numbers;
    for (const VersionInfo& version : store->show_volume(volume).versions)
      if (!version.is_current && !version.is_hidden)
        numbers.push_back(std::to_string(version.number));
    return numbers;
  }
  void step(unsigned& forks) {
    const std::vector<VolumeInfo> volumes = store->list_volumes();
    const std::string volume = volumes[random.below(volumes.size())].name;
    const std::vector<std::string> frozen = versions(volume);
    const std::string some = frozen.empty() ? "" : frozen[random.below(frozen.size())];
    switch (random.below(9)) {
      case 0:
      case 1:
        store->create_version(volume, {});
        break;
      case 2:
        if (!some.empty()) store->remove_versions(volume, {some});
        break;
      case 3:
        if (!some.empty()) store->rollback(volume, some);
        break;
      case 4:
        if (!some.empty() && forks < 4)
          store->fork_volume(fmt::format("fork{}", ++forks), volume, some, 0);
        break;
      case 5:
        if (volume.starts_with("fork") && random.chance(3)) store->remove_volume(volume);
        break;
      case 6:
        if (volume.starts_with("fork") && random.chance(3))
          error_code([&] { store->flatten_volume(volume, [](uint64_t) {}); });
        break;
      default:
        scribble(volume, 4);
    }
  }
};

TEST_CASE("in a store that was merely used there are no faults") {
  Random random(test_seed());
  UsedStore used(random);
  unsigned forks = 0;
  for (uint64_t i = 0, count = test_operations(kIsSanitized ? 30 : 80); i < count; ++i) {
    used.step(forks);
    if (i % 5 != 0) continue;
    INFO("after step " << i);
    require_sound(*used.memory);
    // Nor after a crash, which leaves something to be recovered.
    const auto crashed =
        used.memory->crash(used.memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, i);
    crashed->put_new("gc.lock", {});
    const CheckReport report = check(*crashed);
    INFO(text_of(report));
    for (const Finding& finding : report.findings.all())
      REQUIRE((!finding.is_fault || finding.repair != Repair::kNone));
  }
  used.store.reset();
  const CheckReport report = check(*used.memory, /*reads_data=*/true);
  INFO(text_of(report));
  CHECK(report.findings.faults() == 0);
  CHECK(report.templates == 1);
}

namespace {

// What can be read of a store: each disk's bytes. A disk that cannot be read whole is left out.
std::map<std::string, uint64_t> read_disks(MemoryBackend& backend) {
  std::map<std::string, uint64_t> disks;
  std::unique_ptr<Store> store;
  const auto attempt = [&](const std::function<void()>& read) {
    try {
      read();
    } catch (const Error&) {
      // It is damaged.
    }
  };
  attempt([&] {
    store = std::make_unique<Store>(std::make_unique<ForwardingBackend>(backend), StoreOptions());
    for (const ExportInfo& found : store->list_exports())
      attempt([&] {
        const auto disk = store->open_export(found.name, new_peer(), true);
        ByteVector bytes(disk->size_bytes());
        disk->read(0, bytes);
        disks[found.name] = checksum(bytes);
      });
  });
  return disks;
}

}  // namespace

TEST_CASE("whatever is damaged, check ends, says so or not, and changes nothing") {
  Random random(test_seed());
  UsedStore used(random);
  unsigned forks = 0;
  for (int i = 0; i < 25; ++i) used.step(forks);
  used.store.reset();
  std::vector<std::string> objects;
  const std::function<void(const std::string&)> list = [&](const std::string& folder) {
    for (const std::string& part : used.memory->list(folder)) {
      const std::string name = folder.empty() ? part : folder + "/" + part;
      try {
        used.memory->open(name, Access::kRead, Purpose::kMetadata);
        objects.push_back(name);
      } catch (const Error&) {
        list(name);
      }
    }
  };
  list("");
  REQUIRE(objects.size() > 10);
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(kIsSanitized ? 800 : 1200);
  unsigned runs = 0, with_faults = 0;
  while (std::chrono::steady_clock::now() < deadline) {
    const auto damaged = used.memory->clone();
    damaged->set_recording(true);
    for (uint64_t i = 0, count = 1 + random.below(4); i < count; ++i) {
      const std::string& name = objects[random.below(objects.size())];
      ByteVector content = damaged->content(name);
      if (content.empty()) continue;
      if (random.chance(8)) {
        content.resize(random.below(content.size()));
      } else {
        // Most of what decides is in front.
        const uint64_t bound =
            random.chance(2) ? std::min<uint64_t>(content.size(), 16384) : content.size();
        for (uint64_t j = 0, bytes = 1 + random.below(8); j < bytes; ++j)
          content[random.below(bound)] = static_cast<std::byte>(random.below(256));
      }
      damaged->set_content(name, content);
    }
    const size_t events = damaged->event_count();
    const CheckReport report = check(*damaged, random.chance(2));
    REQUIRE(damaged->event_count() == events);
    ++runs;
    with_faults += report.findings.faults() > 0 ? 1 : 0;
    if (report.findings.faults() == 0 || !random.chance(2)) continue;
    // Nobody loses by repair what he could read.
    const std::map<std::string, uint64_t> before = read_disks(*damaged->clone());
    CheckReport repaired = report;
    try {
      Store(std::make_unique<ForwardingBackend>(*damaged), StoreOptions())
          .repair(repaired.findings);
    } catch (const Error&) {
      continue;  // it is no store any more
    }
    const std::map<std::string, uint64_t> after = read_disks(*damaged);
    INFO(text_of(repaired));
    for (const auto& [name, sum] : before) {
      INFO(name);
      REQUIRE(after.contains(name));
      REQUIRE(after.at(name) == sum);
    }
  }
  MESSAGE(runs << " damaged stores, " << with_faults << " with faults");
  CHECK(with_faults > 0);
}

}  // namespace tplstore::store_check_test
