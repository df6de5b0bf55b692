// Removing volumes: whoever removes or collects one holds its lock, whatever else of it is damaged,
// and what was removed or made by half is removed by the next one.
#include <doctest/doctest.h>

#include <algorithm>
#include <future>
#include <thread>

#include "store_testing.h"

namespace tplstore::volume_removal_test {
namespace {

// Two processes on one store that has the volume "vm".
struct TwoServersOfVm : TwoServers {
  Uuid uuid = one->create_volume("vm", 1 << 20, "").uuid;
  std::string folder = volume_folder(uuid);
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The ways in which a header cannot be read.
const std::vector<std::pair<std::string, std::function<void(TwoServersOfVm&)>>> kHeaderDamages = {
    {"read error", [](TwoServersOfVm& s) { s.memory->fail_reads(header_name(s.folder), EIO); }},
    {"zeroes",
     [](TwoServersOfVm& s) {
       s.memory->set_content(header_name(s.folder), ByteVector(2 * kSlotBytes));
     }},
    {"missing", [](TwoServersOfVm& s) { s.memory->remove(header_name(s.folder)); }},
    {"another's",
     [](TwoServersOfVm& s) {
       const Uuid other = s.two->create_volume("other", 1 << 20, "").uuid;
       s.memory->set_content(header_name(s.folder),
                             s.memory->content(header_name(volume_folder(other))));
     }},
};

}  // namespace

TEST_CASE("a volume that is open is not removed, whatever its header says") {
  for (const auto& [what, damage] : kHeaderDamages) {
    INFO("header: " << what);
    TwoServersOfVm s;
    auto disk = s.one->open_export("vm", living_peer());
    disk->write(0, as_bytes("flushed"), true);
    damage(s);
    CHECK(error_code([&] { s.two->remove_volume("vm"); }) == EBUSY);
    CHECK(s.memory->get("names/vm", 100));
    CHECK(s.memory->list(s.folder).size() >= 5);
    ByteVector bytes(7);
    disk->read(0, bytes);
    CHECK(to_text(bytes) == "flushed");
    CHECK(error_code([&] { s.two->remove_volume("vm", Store::IfDamaged::kRemove); }) == EBUSY);
    CHECK(s.memory->get("names/vm", 100));
    // Once nobody has it open it goes.
    disk.reset();
    s.two->remove_volume("vm", Store::IfDamaged::kRemove);
    CHECK_FALSE(s.memory->get("names/vm", 100));
    CHECK(s.memory->list(s.folder).empty());
  }
}

TEST_CASE("a volume whose header cannot be read is removed only when that is said") {
  for (const auto& [what, damage] : kHeaderDamages) {
    INFO("header: " << what);
    TwoServersOfVm s;
    damage(s);
    // Without one it is what a creation or a removal has left.
    if (what != "missing") {
      CHECK(error_code([&] { s.two->remove_volume("vm"); }) == EIO);
      CHECK(contains(error_message([&] { s.two->remove_volume("vm"); }), "rm vm --force"));
      CHECK(s.memory->get("names/vm", 100));
      CHECK(s.memory->list(s.folder).size() >= 5);
      s.two->remove_volume("vm", Store::IfDamaged::kRemove);
    } else {
      s.two->remove_volume("vm");
    }
    CHECK_FALSE(s.memory->get("names/vm", 100));
    CHECK(s.memory->list(s.folder).empty());
  }
}

TEST_CASE("gc collects no volume that is open, also when its name is lost") {
  for (const auto& [what, damage] : kHeaderDamages) {
    INFO("header: " << what);
    TwoServersOfVm s;
    auto disk = s.one->open_export("vm", living_peer());
    disk->write(0, as_bytes("flushed"), true);
    damage(s);
    s.memory->remove("names/vm");
    CHECK(s.two->remove_orphans() == 0);
    CHECK(s.memory->list(s.folder).size() >= 5);
    CHECK(std::any_of(s.log.begin(), s.log.end(), [&](const std::string& line) {
      return contains(line, s.uuid.text()) && contains(line, "in use");
    }));
    ByteVector bytes(7);
    disk->read(0, bytes);
    CHECK(to_text(bytes) == "flushed");
    disk.reset();
    CHECK(s.two->remove_orphans() == 1);
    CHECK(s.memory->list(s.folder).empty());
  }
}

TEST_CASE("one volume that cannot be collected keeps gc from no other") {
  TwoServersOfVm s;
  auto disk = s.one->open_export("vm", living_peer());
  s.memory->remove("names/vm");
  s.two->create_volume("a", 1 << 20, "");
  s.two->create_volume("z", 1 << 20, "");
  s.memory->remove("names/a");
  s.memory->remove("names/z");
  CHECK(s.two->remove_orphans() == 2);
  CHECK(s.memory->list("volumes") == std::vector<std::string>{s.uuid.text()});
}

TEST_CASE("a volume whose lock is missing beside its header is kept until somebody makes one") {
  for (const std::string part : {"lock", "readers"}) {
    TwoServersOfVm s;
    auto disk = s.one->open_export("vm", living_peer());
    s.memory->remove(s.folder + "/" + part);
    const bool is_lock = part == "lock";
    if (!is_lock) disk.reset();
    const std::string message = error_message([&] { s.two->remove_volume("vm"); });
    CHECK(contains(message, s.folder + "/" + part));
    CHECK(contains(message, "empty"));
    CHECK(s.memory->get("names/vm", 100));
    CHECK(s.memory->get(header_name(s.folder), 1 << 20));
    s.memory->remove("names/vm");
    CHECK(s.two->remove_orphans() == 0);
    CHECK(s.memory->get(header_name(s.folder), 1 << 20));
    disk.reset();
    s.memory->create(s.folder + "/" + part, 0, Purpose::kMetadata);
    CHECK(s.two->remove_orphans() == 1);
    CHECK(s.memory->list(s.folder).empty());
  }
}

TEST_CASE("a volume that was made or removed by half is removed by the next one") {
  TwoServersOfVm s;
  s.one->remove_volume("vm");
  // Its creation and its removal, cut off anywhere.
  const uint64_t seed = test_seed();
  size_t halves = 0;
  for (CrashWalker walker(*s.memory);; walker.advance()) {
    for (const auto kind : {MemoryBackend::Crash::kKill, MemoryBackend::Crash::kRandom}) {
      const auto after = walker.crash(kind, seed + walker.event_count());
      if (!after->get("store", 1 << 20)) continue;
      Store next(std::make_unique<ForwardingBackend>(*after), s.options);
      halves += after->list("volumes").empty() ? 0 : 1;
      if (after->get("names/vm", 100)) next.remove_volume("vm");
      next.remove_orphans();
      CHECK(after->list("volumes").empty());
    }
    if (walker.is_at_end()) break;
  }
  CHECK(halves > 20);
}

TEST_CASE("the lock of a volume is the last of it that is removed, and held until then") {
  for (const bool is_orphan : {false, true}) {
    TwoServersOfVm s;
    if (is_orphan) s.memory->remove("names/vm");
    size_t removals = 0;
    s.between->on_remove = [&](const std::string& name) {
      if (!name.starts_with(s.folder)) return;
      ++removals;
      if (s.memory->get(s.folder + "/lock", 1)) {
        CHECK_FALSE(s.memory->try_lock(s.folder + "/lock", LockMode::kExclusive));
      } else {
        CHECK(s.memory->list(s.folder).empty());
      }
    };
    if (is_orphan) {
      CHECK(s.two->remove_orphans() == 1);
    } else {
      s.two->remove_volume("vm");
    }
    CHECK(removals >= 6);
  }
}

TEST_CASE("an imported volume whose name cannot be made durable is not there, nor half of it") {
  TwoServersOfVm s;
  s.between->on_put = [](const std::string& name) {
    if (name == "names/new") fail(EIO, name, "syncing its folder");
  };
  Store::ImportedVersion imported;
  imported.size_bytes = 1 << 20;
  const auto import = [&] {
    return s.two->import_version("new", imported,
                                 [](Disk& disk) { disk.write(0, as_bytes("data"), false); });
  };
  CHECK(error_code(import) == EIO);
  CHECK(s.memory->list("names") == std::vector<std::string>{"vm"});
  CHECK(s.memory->list("volumes") == std::vector<std::string>{s.uuid.text()});
  s.between->on_put = nullptr;
  import();
  CHECK(s.two->show_volume("new").size_bytes == 1 << 20);
}

TEST_CASE("a name that leads nowhere is removed") {
  TwoServersOfVm s;
  s.memory->remove_folder(s.folder);
  s.two->remove_volume("vm");
  CHECK(s.two->list_volumes().empty());
  CHECK(s.memory->list("volumes").empty());
}

TEST_CASE("a volume that lost its name while somebody waited for it is not opened") {
  TwoServersOfVm s;
  auto held = s.memory->try_lock(s.folder + "/lock", LockMode::kExclusive);
  s.between->on_lock = [&](const std::string& name, bool is_ours) {
    if (is_ours || !name.ends_with("/lock")) return;
    // As a removal does that leaves what forks need.
    s.memory->remove("names/vm");
    held.reset();
  };
  CHECK(error_code([&] { s.two->open_export("vm", living_peer()); }) == ENOENT);
  CHECK_FALSE(s.memory->is_locked(s.folder + "/lock"));
}

TEST_CASE("listing takes no lock") {
  TwoServersOfVm s;
  s.one->create_version("vm", {});
  s.between->on_lock = [&](const std::string& name, bool) {
    INFO(name);
    CHECK_FALSE(name.starts_with("volumes/"));
  };
  CHECK(s.two->list_volumes().size() == 1);
  CHECK_FALSE(s.two->list_volumes()[0].is_attached);
  const auto disk = s.one->open_export("vm", living_peer());
  CHECK(s.two->list_volumes()[0].is_attached);
  s.two->reclaim();
}

TEST_CASE("a removal waits for who reads a version for a moment only") {
  TwoServersOfVm s;
  s.one->create_version("vm", {});
  std::unique_ptr<Disk> reader = s.one->open_export("vm@1", living_peer());
  size_t tries = 0;
  s.between->on_lock = [&](const std::string& name, bool is_ours) {
    if (!name.ends_with("/readers") || is_ours) return;
    ++tries;
    reader.reset();
  };
  s.two->remove_volume("vm");
  CHECK(tries == 1);
  CHECK(s.two->list_volumes().empty());
}

TEST_CASE("a volume with the header of another one is refused, naming both") {
  TwoServersOfVm s;
  const VolumeInfo other = s.two->create_volume("other", 1 << 20, "");
  s.one->create_version("vm", {});
  for (const std::string part : {"header", "map", "map.1"}) {
    INFO(part);
    const ByteVector own = s.memory->content(s.folder + "/" + part);
    s.memory->set_content(s.folder + "/" + part,
                          s.memory->content(volume_folder(other.uuid) + "/" + part));
    const auto names_both = [&](const std::string& message) {
      INFO(message);
      CHECK(contains(message, s.uuid.text()));
      CHECK(contains(message, other.uuid.text()));
    };
    CHECK(error_code([&] { s.one->open_export("vm", living_peer()); }) == EIO);
    names_both(error_message([&] { s.one->open_export("vm", living_peer()); }));
    CHECK(error_code([&] { s.one->open_export("vm@1", living_peer()); }) == EIO);
    names_both(error_message([&] { s.one->open_export("vm@1", living_peer()); }));
    CHECK(error_code([&] { s.one->show_volume("vm"); }) == EIO);
    s.log.clear();
    CHECK(s.one->list_volumes().size() == 2);
    REQUIRE(s.log.size() == 1);
    names_both(s.log[0]);
    CHECK(error_code([&] { s.one->fork_volume("fork", "vm", "1", 0); }) == EIO);
    CHECK(s.one->open_export("other", living_peer()) != nullptr);
    s.memory->set_content(s.folder + "/" + part, own);
    CHECK(s.one->open_export("vm", living_peer()) != nullptr);
  }
}

TEST_CASE("a fork whose header is another volume's keeps its parent's data") {
  TwoServersOfVm s;
  s.one->open_export("vm", living_peer())->write(0, as_bytes("shared"), true);
  s.one->create_version("vm", {});
  const VolumeInfo fork = s.one->fork_volume("fork", "vm", "1", 0);
  const VolumeInfo other = s.one->create_volume("other", 1 << 20, "");
  const std::string header = header_name(volume_folder(fork.uuid));
  const ByteVector own = s.memory->content(header);
  s.memory->set_content(header, s.memory->content(header_name(volume_folder(other.uuid))));
  s.one->remove_volume("vm");
  s.one->remove_orphans();
  s.memory->set_content(header, own);
  ByteVector bytes(6);
  s.one->open_export("fork", living_peer())->read(0, bytes);
  CHECK(to_text(bytes) == "shared");
}

TEST_CASE("removing a volume with another fork's header lets go of its own parent only") {
  TwoServersOfVm s;
  s.one->open_export("vm", living_peer())->write(0, as_bytes("shared"), true);
  s.one->create_version("vm", {});
  const VolumeInfo fork = s.one->fork_volume("fork", "vm", "1", 0);
  const VolumeInfo other = s.one->create_volume("other", 1 << 20, "");
  s.one->remove_volume("vm");
  s.memory->set_content(header_name(volume_folder(other.uuid)),
                        s.memory->content(header_name(volume_folder(fork.uuid))));
  s.one->remove_volume("other", Store::IfDamaged::kRemove);
  ByteVector bytes(6);
  s.one->open_export("fork", living_peer())->read(0, bytes);
  CHECK(to_text(bytes) == "shared");
}

TEST_CASE("a removal that two crashes have cut short is completed") {
  EmptyStoreFixture f;
  const Uuid uuid = f.store->create_volume("vm", 1 << 20, "").uuid;
  const uint64_t begin = f.memory->event_count();
  f.store->remove_volume("vm");
  const auto is_of_header = [&](uint64_t event) {
    return f.memory->describe_event(event) == "remove " + header_name(volume_folder(uuid));
  };
  uint64_t header_removed = begin;
  while (!is_of_header(header_removed)) REQUIRE(++header_removed < f.memory->event_count());
  // The process is killed when it has removed the header.
  const auto killed = f.memory->crash(header_removed + 1, MemoryBackend::Crash::kKill, /*seed=*/1);
  Store(std::make_unique<ForwardingBackend>(*killed), StoreOptions()).remove_orphans();
  for (uint64_t events = 0; events <= killed->event_count(); ++events) {
    for (uint64_t seed = 1; seed <= 50; ++seed) {
      const auto after = killed->crash(events, MemoryBackend::Crash::kRandom, seed);
      Store(std::make_unique<ForwardingBackend>(*after), StoreOptions()).remove_orphans();
      INFO("events " << events << " seed " << seed);
      CHECK(after->list("volumes").empty());
    }
  }
}

}  // namespace tplstore::volume_removal_test
