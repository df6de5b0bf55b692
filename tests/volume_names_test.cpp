// Names of volumes: renaming, removing for a while, restoring, and what a crash makes of that.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <map>

#include "store/removed_volumes.h"
#include "store/store_config.h"
#include "store_testing.h"

namespace tplstore::volume_names_test {
namespace {

constexpr std::chrono::seconds kSoon{10};

std::vector<std::string> names_of(Store& store) {
  std::vector<std::string> names;
  for (const VolumeInfo& info : store.list_volumes()) names.push_back(info.name);
  return names;
}

void put(Store& store, const std::string& name, int value) {
  const auto disk = store.open_export(name, new_peer());
  disk->write(0, filled(kBlockBytes, value), false);
  disk->flush();
}

int get(Store& store, const std::string& name) {
  return static_cast<int>(bytes_at(*store.open_export(name, new_peer()), 0)[0]);
}

}  // namespace

TEST_CASE_FIXTURE(StoreFixture, "a volume is renamed with its versions and forks") {
  put(*store, "vm1", 7);
  store->create_version("vm1", {"base", "", {}});
  store->fork_volume("vm2", "vm1", "base", 0);
  const Uuid uuid = store->show_volume("vm1").uuid;
  store->rename_volume("vm1", "db");
  CHECK(names_of(*store) == std::vector<std::string>{"db", "vm2"});
  CHECK(store->show_volume("db").uuid == uuid);
  CHECK(store->show_volume("vm2").parent == "db@1");
  CHECK(get(*store, "db") == 7);
  CHECK(get(*store, "vm2") == 7);
  CHECK(error_code([&] { store->show_volume("vm1"); }) == ENOENT);
  store->create_volume("vm1", kDiskBytes, "");
  CHECK(error_code([&] { store->rename_volume("db", "vm1"); }) == EEXIST);
  CHECK(error_code([&] { store->rename_volume("db", "db"); }) == EEXIST);
  CHECK(error_code([&] { store->rename_volume("db", "../x"); }) == EINVAL);
  CHECK(error_code([&] { store->rename_volume("none", "x"); }) == ENOENT);
  CHECK(names_of(*store) == std::vector<std::string>{"db", "vm1", "vm2"});
  {
    const auto disk = store->open_export("db", vm_peer());
    CHECK(error_message([&] { store->rename_volume("db", "x"); }).find("in use by a VM") !=
          std::string::npos);
  }
  store->rename_volume("vm1", "other");
  store->rename_volume("db", "vm1");
  CHECK(get(*store, "vm1") == 7);
  CHECK(store->remove_orphans() == 0);
  CHECK(!memory->get(volume_folder(uuid) + "/rename", 4096));
}

TEST_CASE_FIXTURE(StoreFixture,
                  "a volume that is removed and kept has no name and can be restored") {
  put(*store, "vm1", 7);
  store->create_version("vm1", {"base", "", {}});
  store->fork_volume("vm2", "vm1", "base", 0);
  const auto until = store->remove_volume("vm1", Store::IfDamaged::kKeep, 3600);
  REQUIRE(until);
  CHECK(names_of(*store) == std::vector<std::string>{"vm2"});
  CHECK(error_message([&] { store->open_export("vm1", new_peer()); }).find("restore vm1") !=
        std::string::npos);
  CHECK(error_code([&] { store->open_export("vm1@base", new_peer()); }) == ENOENT);
  // Nothing takes it for garbage.
  CHECK(store->remove_orphans() == 0);
  CHECK(store->remove_expired() == 0);
  store->flatten_volume("vm2", [](uint64_t) {});
  store->remove_volume("vm2");
  const std::vector<RemovedVolume> removed = store->list_removed();
  REQUIRE(removed.size() == 1);
  CHECK(removed[0].name == "vm1");
  CHECK(removed[0].size_bytes == kDiskBytes);
  CHECK(removed[0].unique_bytes > 0);

  // Its name is free.
  store->create_volume("vm1", kDiskBytes, "");
  CHECK(error_code([&] { store->restore_volume("vm1"); }) == EEXIST);
  CHECK(store->restore_volume("vm1", "old").name == "old");
  CHECK(get(*store, "old") == 7);
  CHECK(get(*store, "old@base") == 7);
  CHECK(store->list_removed().empty());
  CHECK(error_code([&] { store->restore_volume("vm1"); }) == ENOENT);

  // The last one of that name comes first, a uuid names each.
  put(*store, "vm1", 1);
  store->remove_volume("vm1", Store::IfDamaged::kKeep, 3600);
  store->rename_volume("old", "vm1");
  store->remove_volume("vm1", Store::IfDamaged::kKeep, 7200);
  REQUIRE(store->list_removed().size() == 2);
  CHECK(store->restore_volume("vm1").name == "vm1");
  CHECK(get(*store, "vm1") == 7);
  CHECK(store->restore_volume(store->list_removed()[0].uuid.text(), "vm3").name == "vm3");
  CHECK(get(*store, "vm3") == 1);
}

TEST_CASE_FIXTURE(StoreFixture, "what was kept long enough goes, but for what forks need") {
  put(*store, "vm1", 7);
  store->create_version("vm1", {"base", "", {}});
  store->fork_volume("vm2", "vm1", "base", 0);
  const Uuid uuid = store->show_volume("vm1").uuid;
  store->remove_volume("vm1", Store::IfDamaged::kKeep, 1);
  const std::string object = "removed/" + uuid.text();
  CHECK(store->remove_expired() == 0);
  const std::string_view expired = "{\"name\":\"vm1\",\"removed_ns\":1,\"until_ns\":2}";
  memory->set_content(object, as_bytes(expired));
  CHECK(store->remove_expired() == 1);
  CHECK(store->list_removed().empty());
  CHECK(error_code([&] { store->restore_volume("vm1"); }) == ENOENT);
  CHECK(get(*store, "vm2") == 7);
  store->remove_volume("vm2");
  CHECK(memory->list("volumes").empty());
}

TEST_CASE("other volumes are seen to while the files of a removed one take long to go") {
  // The hooks use these until the store has ended.
  std::promise<void> goes, may_go, has_upkeep;
  std::atomic<bool> is_first_sync{true};
  TwoServers s;
  const std::string folder = volume_folder(s.two->create_volume("vm1", kDiskBytes, "").uuid);
  const Uuid old = s.two->create_volume("old", kDiskBytes, "").uuid;
  s.two->remove_volume("old", Store::IfDamaged::kKeep, 1);
  const std::string_view expired = "{\"name\":\"old\",\"removed_ns\":1,\"until_ns\":2}";
  s.memory->set_content("removed/" + old.text(), as_bytes(expired));
  // Something of vm1 becomes free, which upkeep gives back.
  const auto disk = s.two->open_export("vm1", vm_peer());
  disk->write(0, filled(kBlockBytes, 1), true);
  s.two->create_version("vm1", {"v", "", {}});
  disk->write(0, filled(kBlockBytes, 2), true);
  s.two->remove_versions("vm1", {"v"});
  s.between->on_synced = [&](const std::string& name) {
    if (name.starts_with(folder + "/map.") && is_first_sync.exchange(false)) has_upkeep.set_value();
  };
  s.between->around = [&](ForwardingBackend::Call call, const std::string&,
                          const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kRemoveFolder) {
      goes.set_value();
      may_go.get_future().wait();
    }
    go_on();
  };
  s.two->start();
  goes.get_future().wait();
  CHECK(has_upkeep.get_future().wait_for(kSoon) == std::future_status::ready);
  may_go.set_value();
}

TEST_CASE("a volume that is restored and removed again while it was about to go stays") {
  TwoServers s;
  const Uuid uuid = s.one->create_volume("vm1", kDiskBytes, "").uuid;
  s.one->remove_volume("vm1", Store::IfDamaged::kKeep, 1);
  const std::string_view expired = "{\"name\":\"vm1\",\"removed_ns\":1,\"until_ns\":2}";
  s.memory->set_content("removed/" + uuid.text(), as_bytes(expired));
  s.between->around = [&](ForwardingBackend::Call call, const std::string& name,
                          const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kLock && name.ends_with("/lock")) {
      s.between->around = nullptr;
      s.one->restore_volume("vm1");
      s.one->remove_volume("vm1", Store::IfDamaged::kKeep, 3600);
    }
    go_on();
  };
  CHECK(s.two->remove_expired() == 0);
  CHECK(s.two->restore_volume("vm1").uuid == uuid);
}

TEST_CASE("a clock that is set forward while a program runs ends nothing") {
  constexpr int64_t kHour = int64_t{3600} * 1'000'000'000, kBegin = 400'000 * kHour;
  const ExpiryClock clock(kBegin, 5 * kHour);
  CHECK(clock.now_ns(kBegin + 9 * kHour, 14 * kHour) == kBegin + 9 * kHour);
  CHECK(clock.now_ns(kBegin - 9 * kHour, 5 * kHour) == kBegin - 9 * kHour);
  CHECK(clock.now_ns(3 * kBegin, 6 * kHour) == kBegin + 2 * kHour);
  // One that was wrong when it began is corrected.
  CHECK(clock.now_ns(kBegin + kHour / 2, 5 * kHour) == kBegin + kHour / 2);
}

TEST_CASE_FIXTURE(StoreFixture, "a template that only a removed volume needs is needed") {
  import_test_template(*backend, "golden", filled(kRegionBytes, 3));
  store->create_volume("vm2", 0, "golden");
  store->remove_volume("vm2", Store::IfDamaged::kKeep, 3600);
  const auto users = store->template_users();
  REQUIRE(users.contains("golden"));
  CHECK(users.at("golden") == std::vector<std::string>{"vm2 (removed, and kept)"});
}

TEST_CASE_FIXTURE(StoreFixture, "damage of what says that a volume is kept takes nothing along") {
  const Uuid uuid = store->show_volume("vm1").uuid;
  store->remove_volume("vm1", Store::IfDamaged::kKeep, 1);
  for (const std::string_view text : {"", "{", "[]", "{\"name\":\"vm1\"}",
                                      "{\"name\":\"../x\",\"removed_ns\":1,\"until_ns\":2}"}) {
    memory->set_content("removed/" + uuid.text(), as_bytes(text));
    CHECK(store->remove_expired() == 0);
    CHECK(store->remove_orphans() == 0);
    CHECK(store->list_removed().empty());
  }
  memory->fail_reads("removed/", EIO);
  CHECK(store->remove_orphans() == 0);
  memory->fail_reads("removed/", 0);
  CHECK(memory->list("volumes").size() == 1);
}

TEST_CASE_FIXTURE(EmptyStoreFixture, "a store's configuration is replaced as a whole") {
  CHECK(store->removal_keep_s() == 0);
  memory->set_content("config.3", as_bytes(std::string_view("{\"later\": [1], \"keep\": \"1d\"}")));
  CHECK(store->removal_keep_s() == 86400);
  store->set_removal_keep_s(90);
  CHECK(store->removal_keep_s() == 90);
  CHECK(!memory->get("config.3", 4096));
  CHECK(to_text(memory->content("config.4")).find("later") != std::string::npos);
  for (const std::string_view text : {"", "[1]", "{\"keep\": 7}", "{\"keep\": \"7 days\"}"}) {
    memory->set_content("config.4", as_bytes(text));
    CHECK(error_code([&] { store->removal_keep_s(); }) == EIO);
  }
}

// Each step is acknowledged before the next begins. Behind a crash every volume has exactly one
// name, or one entry among the removed: that of the last step, or of the one that was under way.
TEST_CASE("a crash while volumes are renamed, removed and restored leaves each with one name") {
  Random random(test_seed());
  const auto backend = memory_store();
  using Names = std::map<Uuid, std::string>;  // of one that was removed "-" and its name
  struct Acknowledged {
    size_t events;
    Names names;
  };
  std::vector<Acknowledged> steps;
  {
    Store store(std::make_unique<ForwardingBackend>(*backend), StoreOptions{});
    Names names;
    for (const std::string name : {"a", "b"})
      names[store.create_volume(name, kDiskBytes, "").uuid] = name;
    backend->set_recording(false);
    backend->set_recording(true);
    const auto step = [&](const std::string& from, const std::string& to, auto work) {
      steps.push_back({backend->event_count(), names});
      work();
      std::ranges::find(names, from, &Names::value_type::second)->second = to;
    };
    const auto rename = [&](const std::string& from, const std::string& to) {
      step(from, to, [&] { store.rename_volume(from, to); });
    };
    const auto remove = [&](const std::string& name) {
      step(name, "-" + name, [&] { store.remove_volume(name, Store::IfDamaged::kKeep, 3600); });
    };
    const auto restore = [&](const std::string& name, const std::string& as) {
      step("-" + name, as, [&] { store.restore_volume(name, as); });
    };
    rename("a", "c");
    rename("b", "a");
    rename("c", "b");
    remove("b");
    rename("a", "b");
    restore("b", "a");
    remove("a");
    restore("a", "a");
    rename("a", "c");
    steps.push_back({backend->event_count(), names});
  }
  const auto names_in = [](Store& store) {
    Names names;
    for (const VolumeInfo& info : store.list_volumes()) {
      REQUIRE(!names.contains(info.uuid));
      names[info.uuid] = info.name;
    }
    for (const RemovedVolume& removed : store.list_removed()) {
      REQUIRE(!names.contains(removed.uuid));
      names[removed.uuid] = "-" + removed.name;
    }
    return names;
  };
  uint64_t states = 0;
  for (CrashWalker walker(*backend);; walker.advance()) {
    for (const auto kind : {MemoryBackend::Crash::kKill, MemoryBackend::Crash::kLoseUnsynced,
                            MemoryBackend::Crash::kRandom}) {
      const auto after = walker.crash(kind, random.below(UINT64_MAX));
      const size_t events = walker.event_count();
      size_t last = 0;
      while (last + 1 < steps.size() && steps[last + 1].events <= events) ++last;
      const size_t next = std::min(last + 1, steps.size() - 1);
      INFO("crash " << static_cast<int>(kind) << " behind event " << events << ": "
                    << (events == 0 ? "-" : backend->describe_event(events - 1)));
      Store store(std::make_unique<ForwardingBackend>(*after), StoreOptions{});
      const Names found = names_in(store);
      REQUIRE((found == steps[last].names || found == steps[next].names));
      for (const auto& [uuid, name] : found)
        if (name[0] != '-') REQUIRE(store.open_export(name, new_peer()));
      if (random.chance(2)) REQUIRE(store.remove_orphans() == 0);
      // Every name that is free can be given.
      for (const std::string name : {"a", "b", "c"}) {
        const bool is_taken =
            std::ranges::find(found, name, &Names::value_type::second) != found.end();
        INFO(name);
        REQUIRE(error_code([&] { store.create_volume(name, kDiskBytes, ""); }) ==
                (is_taken ? EEXIST : 0));
      }
      REQUIRE(store.list_volumes().size() == 3 + std::ranges::count_if(found, [](const auto& one) {
                                               return one.second[0] != '-' && one.second > "c";
                                             }));
      for (const auto& [uuid, name] : found)
        if (name[0] != '-') REQUIRE(store.show_volume(name).uuid == uuid);
      ++states;
    }
    if (walker.is_at_end()) break;
  }
  MESSAGE(states << " states");
  CHECK(states > 100);
}

}  // namespace tplstore::volume_names_test
