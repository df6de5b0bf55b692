// Versions of several volumes that are of one moment.
#include "volume/version_set.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <thread>

#include "store_testing.h"

namespace tplstore::version_set_test {
namespace {

uint64_t number_at(Disk& disk, uint64_t offset) {
  uint64_t number = 0;
  const ByteVector bytes = bytes_at(disk, offset);
  std::memcpy(&number, bytes.data(), sizeof number);
  return number;
}

void put_number(Disk& disk, uint64_t offset, uint64_t number) {
  ByteVector bytes(kBlockBytes);
  std::memcpy(bytes.data(), &number, sizeof number);
  disk.write(offset, bytes, false);
}

bool has_version(Store& store, const std::string& volume, const std::string& version) {
  const auto versions = store.show_volume(volume).versions;
  const bool is_listed = std::ranges::any_of(
      versions, [&](const VersionInfo& info) { return info.name == version && !info.is_hidden; });
  const int code = error_code([&] { store.open_export(volume + "@" + version, new_peer()); });
  CHECK((code == 0 || code == ENOENT));
  CHECK((code == 0) == is_listed);
  return is_listed;
}

}  // namespace

TEST_CASE_FIXTURE(StoreFixture, "versions are made of several volumes, or refused for all") {
  store->create_volume("vm2", kDiskBytes, "");
  store->create_version("vm2", {"before", "", {}});
  const auto made = store->create_versions({"vm2", "vm1"}, {"both", "a note", {}});
  REQUIRE(made.size() == 2);
  CHECK(made[0].number == 2);
  CHECK(made[1].number == 1);
  CHECK(has_version(*store, "vm1", "both"));
  CHECK(has_version(*store, "vm2", "both"));
  CHECK(store->show_volume("vm1").versions[0].note == "a note");
  CHECK(memory->list("sets").empty());

  CHECK(error_code([&] { store->create_versions({"vm1", "vm1"}, {}); }) == EINVAL);
  CHECK(error_code([&] { store->create_versions({"vm1", "none"}, {}); }) == ENOENT);
  CHECK(error_code([&] { store->create_versions({"vm1", "vm2"}, {"before", "", {}}); }) == EEXIST);
  CHECK(error_code([&] { store->create_versions({"vm1", "vm2"}, {"7", "", {}}); }) == EINVAL);
  CHECK(store->show_volume("vm1").versions.size() == 2);
  CHECK(store->show_volume("vm2").versions.size() == 3);
  CHECK(memory->list("sets").empty());
}

TEST_CASE("versions of one moment are not made of volumes of two servers") {
  TwoServers servers;
  servers.one->create_volume("vm1", kDiskBytes, "");
  servers.one->create_volume("vm2", kDiskBytes, "");
  const auto disk = servers.two->open_export("vm2", vm_peer());
  const std::string message = error_message([&] {
    servers.one->create_versions({"vm1", "vm2"}, {"both", "", {}});
  });
  CHECK(message.find("volume vm2: in use by a VM") != std::string::npos);
  CHECK(message.find("one server") != std::string::npos);
  CHECK(!has_version(*servers.one, "vm1", "both"));
}

// Numbers go to the two disks in turn, each after the one before was acknowledged.
TEST_CASE_FIXTURE(StoreFixture,
                  "versions of one moment never have a later write without an earlier") {
  // The first and the last of many to be frozen, so that there is time between the two.
  std::map<Uuid, std::string> volumes;
  std::vector<std::string> names;
  for (int i = 2; i < 18; ++i) store->create_volume(fmt::format("vm{}", i), kDiskBytes, "");
  for (const VolumeInfo& info : store->list_volumes()) volumes[info.uuid] = info.name;
  for (const auto& [uuid, name] : volumes) names.push_back(name);
  const std::string first_name = names.front(), last_name = names.back();
  std::atomic<bool> ends{false};
  std::atomic<uint64_t> written{0};
  std::thread writer([&] {
    const auto one = store->open_export(first_name, test_peer(1));
    const auto two = store->open_export(last_name, test_peer(2));
    for (uint64_t number = 1; !ends; ++number) {
      put_number(*one, (number % 64) * kBlockBytes, number);
      put_number(*one, 0, number);
      put_number(*two, (number % 64) * kBlockBytes, number);
      put_number(*two, 0, number);
      written = number;
    }
  });
  while (written == 0) std::this_thread::yield();
  const int rounds = kIsSanitized ? 10 : 60;
  for (int i = 0; i < rounds; ++i) {
    const uint64_t before = written;
    store->create_versions(names, {fmt::format("v{}", i), "", {}});
    const auto one = store->open_export(fmt::format("{}@v{}", first_name, i), new_peer());
    const auto two = store->open_export(fmt::format("{}@v{}", last_name, i), new_peer());
    const uint64_t first = number_at(*one, 0), second = number_at(*two, 0);
    REQUIRE(first >= before);
    REQUIRE(second >= before);
    REQUIRE((first == second || first == second + 1));
  }
  ends = true;
  writer.join();
}

TEST_CASE_FIXTURE(StoreFixture,
                  "what is damaged or no set takes no version, and is in nobody's way") {
  const Uuid uuid = store->show_volume("vm1").uuid;
  store->create_version("vm1", {"one", "", {}});
  store->create_version("vm1", {"two", "", {}});
  const std::string id = random_uuid().text(), object = "sets/" + id;
  put_version_set(*backend, {id, {{uuid, 2}}, {}});
  CHECK(!has_version(*store, "vm1", "two"));
  std::string text = to_text(memory->content(object));
  text[text.find(" 2") + 1] = '1';
  for (const std::string& damaged :
       {text, text.substr(0, text.find('\n') + 1), std::string(), std::string(70000, 'x')}) {
    memory->set_content(object, as_bytes(damaged));
    CHECK(has_version(*store, "vm1", "one"));
    CHECK(has_version(*store, "vm1", "two"));
    store->open_export("vm1", new_peer());
    CHECK(has_version(*store, "vm1", "one"));
    CHECK(has_version(*store, "vm1", "two"));
  }
  memory->remove(object);
  memory->put_new(object + "/folder", {});
  store->create_volume("vm2", kDiskBytes, "");
  store->create_versions({"vm1", "vm2"}, {"both", "", {}});
  CHECK(has_version(*store, "vm1", "both"));
  CHECK(has_version(*store, "vm2", "both"));
  const auto versions = store->show_volume("vm1").versions;
  CHECK(versions[2].created_ns == store->show_volume("vm2").versions[0].created_ns);
}

TEST_CASE_FIXTURE(StoreFixture, "when one volume fails none has the version") {
  store->create_volume("vm2", kDiskBytes, "");
  const auto one = store->open_export("vm1", test_peer(1));
  auto two = store->open_export("vm2", test_peer(2));
  for (uint64_t skipped = 0; skipped < 12; ++skipped) {
    for (const std::string name : {"vm1", "vm2"}) {
      const std::string folder = volume_folder(store->show_volume(name).uuid);
      put_number(*one, 0, skipped + 1);
      if (error_code([&] { put_number(*two, 0, skipped + 1); }) != 0) {
        two.reset();
        two = store->open_export("vm2", new_peer());
      }
      memory->fail_next_sync(folder, EIO, skipped);
      const bool has_failed = error_code([&] {
                                store->create_versions({"vm1", "vm2"}, {"both", "", {}});
                              }) != 0;
      memory->fail_next_sync(folder, 0);
      INFO(name << " skipped " << skipped);
      REQUIRE(has_version(*store, "vm1", "both") == has_version(*store, "vm2", "both"));
      REQUIRE(has_version(*store, "vm1", "both") != has_failed);
      if (!has_failed)
        for (const std::string volume : {"vm1", "vm2"}) store->remove_versions(volume, {"both"});
      if (has_failed) return;
    }
  }
}

// Every prefix of what is written, with what a crash may make of it.
TEST_CASE("a crash while versions of one moment are made leaves all of them or none") {
  Random random(test_seed());
  const auto backend = memory_store();
  std::vector<size_t> begun, done;
  const std::vector<std::string> volumes = {"a", "b", "c"};
  {
    Store store(std::make_unique<ForwardingBackend>(*backend), StoreOptions{});
    std::vector<std::unique_ptr<Disk>> disks;
    for (const std::string& name : volumes) {
      store.create_volume(name, kDiskBytes, "");
      if (name != "c") disks.push_back(store.open_export(name, new_peer()));
    }
    backend->set_recording(false);
    backend->set_recording(true);
    for (uint64_t i = 0; i < 3; ++i) {
      for (const auto& disk : disks) put_number(*disk, 0, i + 1);
      begun.push_back(backend->event_count());
      store.create_versions(volumes, {fmt::format("v{}", i), "", {}});
      done.push_back(backend->event_count());
    }
  }
  uint64_t states = 0, owns = 0;
  const auto check = [&](MemoryBackend& after, size_t events, bool continues) {
    Store store(std::make_unique<ForwardingBackend>(after), StoreOptions{});
    const auto look = [&] {
      std::vector<bool> all;
      for (size_t i = 0; i < begun.size(); ++i) {
        const std::string version = fmt::format("v{}", i);
        size_t count = 0;
        for (const std::string& volume : volumes)
          if (has_version(store, volume, version)) ++count;
        INFO(version);
        REQUIRE((count == 0 || count == volumes.size()));
        if (events >= done[i]) REQUIRE(count == volumes.size());
        if (events < begun[i]) REQUIRE(count == 0);
        all.push_back(count > 0);
        if (count == 0) continue;
        // And each is what it was.
        for (const std::string volume : {"a", "b"}) {
          const auto disk = store.open_export(volume + "@" + version, new_peer());
          REQUIRE(number_at(*disk, 0) == i + 1);
        }
      }
      return all;
    };
    const auto before = look();
    // One after the other they are opened, in any order; some get versions of their own first,
    // which must not be taken for those that were given up.
    std::vector<std::string> order = volumes;
    std::swap(order[0], order[random.below(3)]);
    std::swap(order[1], order[1 + random.below(2)]);
    for (const std::string& volume : order) {
      store.open_export(volume, new_peer());
      REQUIRE(look() == before);
      if (!random.chance(2)) continue;
      const std::string own = fmt::format("own{}", ++owns);
      store.create_version(volume, {own, "", {}});
      REQUIRE(look() == before);
      REQUIRE(has_version(store, volume, own));
      if (continues) return;
    }
    store.remove_orphans();
    REQUIRE(look() == before);
    REQUIRE(after.list("sets").empty());
    const std::string again = fmt::format("again{}", ++owns);
    store.create_versions(volumes, {again, "", {}});
    for (const std::string& volume : volumes) REQUIRE(has_version(store, volume, again));
  };
  for (CrashWalker walker(*backend);; walker.advance()) {
    for (const auto kind : {MemoryBackend::Crash::kKill, MemoryBackend::Crash::kLoseUnsynced,
                            MemoryBackend::Crash::kRandom}) {
      if (kIsSanitized && !random.chance(8)) continue;
      const size_t events = walker.event_count();
      INFO("crash " << static_cast<int>(kind) << " behind event " << events << ": "
                    << (events == 0 ? "-" : backend->describe_event(events - 1)));
      const auto after = walker.crash(kind, random.below(UINT64_MAX));
      const bool continues = random.chance(4);
      check(*after, events, continues);
      ++states;
      if (!continues) continue;
      // Often right behind a step of what is settled.
      std::vector<size_t> places = {random.below(after->event_count() + 1)};
      for (size_t event = 0; event < after->event_count(); ++event)
        if (after->describe_event(event).find("sets/") != std::string::npos)
          places.push_back(event + 1);
      const auto again =
          after->crash(places[random.below(places.size())], kind, random.below(UINT64_MAX));
      check(*again, events, false);
    }
    if (walker.is_at_end()) break;
  }
  MESSAGE(states << " states");
  CHECK(states > 40);
}

}  // namespace tplstore::version_set_test
