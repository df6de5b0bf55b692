// What a crash may do while volumes are forked, flattened and removed, and versions with them.
//
// A script of steps is recorded, each acknowledged before the next begins. After a crash behind
// any event, every volume and version is as after the last step that was acknowledged, or as after
// the one that was under way. Then what nothing needs is given back, all is looked at again, and
// no cell is allocated that no version of its volume maps.
#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "forwarding_backend.h"
#include "volume_testing.h"

namespace tplstore::fork_crash_test {
namespace {

constexpr uint64_t kDiskBytes = 2 * kRegionBytes;
constexpr uint64_t kBlocks[] = {0, 1, 2, 7, 1023, 1024, 1500, 2047};

// Block to value; what is not there is zero.
using Content = std::map<uint64_t, uint64_t>;

struct Volumes {
  std::map<std::string, Content> current;
  std::map<std::string, Content> versions;  // "vm1@3"
};

ByteVector block_of(uint64_t value) {
  ByteVector bytes(kBlockBytes);
  if (value == 0) return bytes;
  for (size_t i = 0; i < bytes.size(); i += sizeof value)
    std::memcpy(bytes.data() + i, &value, sizeof value);
  return bytes;
}

class Script {
 public:
  explicit Script(MemoryBackend& backend) : backend_(backend) {
    store_ = std::make_unique<Store>(std::make_unique<ForwardingBackend>(backend), StoreOptions{});
    states_.push_back({0, {}});
  }

  void run() {
    create("vm1");
    write("vm1", {0, 1, 2, 1023, 1500});
    version("vm1");  // 1
    write("vm1", {0, 1024});
    version("vm1");  // 2
    write("vm1", {1, 2047});
    fork("vm2", "vm1", 1);
    write("vm2", {0, 7});
    version("vm2");  // 2
    write("vm2", {2});
    fork("vm3", "vm2", 2);
    write("vm3", {1500});
    remove_version("vm1", 1);  // a fork needs it
    write("vm1", {0, 1, 2});
    remove_version("vm1", 2);
    step([&] { store_->rollback("vm2", "2"); },
         [&](Volumes& v) {
           v.versions["vm2@3"] = v.current["vm2"];
           v.current["vm2"] = v.versions["vm2@2"];
         });
    remove_version("vm2", 2);  // a fork needs it, and two versions start from it
    compact("vm2");
    remove_volume("vm1");  // which vm2 needs
    flatten("vm3");
    write("vm3", {0, 1});
    remove_version("vm2", 3);
    flatten("vm2");
    remove_volume("vm2");
    write("vm3", {2047});
    store_.reset();
  }

  size_t events() const { return backend_.event_count(); }

  void check(MemoryBackend& after, uint64_t events, bool removes_versions, bool flattens) const {
    size_t last = 0;
    while (last + 1 < states_.size() && states_[last + 1].events <= events) ++last;
    const Volumes& sure = states_[last].volumes;
    const Volumes& next = states_[std::min(last + 1, states_.size() - 1)].volumes;
    Store store(std::make_unique<ForwardingBackend>(after), StoreOptions{});
    check_all(store, sure, next);
    store.remove_orphans();
    store.reclaim();
    check_all(store, sure, next);
    check_space(after);
    if (flattens) {
      flatten_all(store, sure, next);
      check_space(after);
      return;
    }
    if (!removes_versions) return;
    // What forks need stays when all versions go.
    for (const VolumeInfo& info : store.list_volumes()) {
      std::vector<std::string> numbers;
      for (const VersionInfo& version : store.show_volume(info.name).versions)
        if (!version.is_current && !version.is_hidden)
          numbers.push_back(std::to_string(version.number));
      if (!numbers.empty()) store.remove_versions(info.name, numbers);
    }
    store.reclaim();
    Volumes sure_without = sure;
    Volumes next_without = next;
    sure_without.versions.clear();
    next_without.versions.clear();
    check_all(store, sure_without, next_without);
    check_space(after);
  }

 private:
  // Flattens whatever is a fork, and removes the volumes that were forked, in the order in which
  // they were made: none needs one that is gone.
  void flatten_all(Store& store, Volumes sure, Volumes next) const {
    for (int round = 0; round < 2; ++round)  // a fork of a fork goes first
      for (const VolumeInfo& info : store.list_volumes()) {
        try {
          store.flatten_volume(info.name, [](uint64_t) {});
        } catch (const Error& error) {
          INFO(info.name << ": " << error.what());
          REQUIRE((error.code() == EINVAL || error.code() == EBUSY));
        }
      }
    check_all(store, sure, next);
    for (const std::string name : {"vm1", "vm2"}) {
      try {
        store.remove_volume(name);
      } catch (const Error& error) {
        REQUIRE(error.code() == ENOENT);
      }
      for (Volumes* volumes : {&sure, &next}) {
        volumes->current.erase(name);
        std::erase_if(volumes->versions,
                      [&](const auto& entry) { return entry.first.starts_with(name + "@"); });
      }
      check_all(store, sure, next);
    }
    for (const VolumeInfo& info : store.list_volumes()) REQUIRE(info.parent.empty());
  }

  struct State {
    uint64_t events;  // when it was acknowledged
    Volumes volumes;
  };

  void step(const std::function<void()>& work, const std::function<void(Volumes&)>& model) {
    work();
    State state{backend_.event_count(), states_.back().volumes};
    model(state.volumes);
    states_.push_back(std::move(state));
  }
  void create(const std::string& name) {
    step([&] { store_->create_volume(name, kDiskBytes, ""); },
         [&](Volumes& v) { v.current[name]; });
  }
  void write(const std::string& name, const std::vector<uint64_t>& blocks) {
    const uint64_t base = next_value_;
    next_value_ += blocks.size();
    step(
        [&] {
          const auto disk = store_->open_export(name, new_peer());
          for (size_t i = 0; i < blocks.size(); ++i)
            disk->write(blocks[i] * kBlockBytes, block_of(base + i), false);
          disk->flush();
        },
        [&](Volumes& v) {
          for (size_t i = 0; i < blocks.size(); ++i) v.current[name][blocks[i]] = base + i;
        });
  }
  void version(const std::string& name) {
    uint32_t number = 0;
    step([&] { number = store_->create_version(name, {}).number; },
         [&](Volumes& v) { v.versions[fmt::format("{}@{}", name, number)] = v.current[name]; });
  }
  void remove_version(const std::string& name, uint32_t number) {
    step([&] { store_->remove_versions(name, {std::to_string(number)}); },
         [&](Volumes& v) { v.versions.erase(fmt::format("{}@{}", name, number)); });
  }
  void fork(const std::string& name, const std::string& parent, uint32_t number) {
    step(
        [&] { store_->fork_volume(name, parent, std::to_string(number), 0); },
        [&](Volumes& v) { v.current[name] = v.versions.at(fmt::format("{}@{}", parent, number)); });
  }
  void flatten(const std::string& name) {
    step([&] { store_->flatten_volume(name, [](uint64_t) {}); }, [](Volumes&) {});
  }
  void compact(const std::string& name) {
    step(
        [&] {
          const auto disk = store_->open_export(name, new_peer());
          store_->checkpoint(true);
        },
        [](Volumes&) {});
  }
  void remove_volume(const std::string& name) {
    step([&] { store_->remove_volume(name); },
         [&](Volumes& v) {
           v.current.erase(name);
           std::erase_if(v.versions,
                         [&](const auto& entry) { return entry.first.starts_with(name + "@"); });
         });
  }

  // Whether the export is there; when it is, each sector is as in one of the two.
  bool check_export(Store& store, const std::string& name, const Content* sure,
                    const Content* next) const {
    std::unique_ptr<Disk> disk;
    try {
      disk = store.open_export(name, new_peer());
    } catch (const Error& error) {
      INFO(name << ": " << error.what());
      REQUIRE(error.code() == ENOENT);
      return false;
    }
    for (const uint64_t block : kBlocks) {
      ByteVector bytes(kBlockBytes);
      disk->read(block * kBlockBytes, bytes);
      for (uint64_t offset = 0; offset < kBlockBytes; offset += kSectorBytes) {
        const Bytes sector = Bytes(bytes).subspan(offset, kSectorBytes);
        bool is_right = false;
        for (const Content* content : {sure, next}) {
          if (content == nullptr) continue;
          const auto value = content->find(block);
          const ByteVector wanted = block_of(value == content->end() ? 0 : value->second);
          is_right = is_right || std::ranges::equal(sector, Bytes(wanted).first(kSectorBytes));
        }
        INFO(name << " block " << block << " sector " << offset / kSectorBytes);
        REQUIRE(is_right);
      }
    }
    return true;
  }

  void check_all(Store& store, const Volumes& sure, const Volumes& next) const {
    const auto check_map = [&](const std::map<std::string, Content>& a,
                               const std::map<std::string, Content>& b) {
      std::set<std::string> names;
      for (const auto& [name, content] : a) names.insert(name);
      for (const auto& [name, content] : b) names.insert(name);
      for (const std::string& name : names) {
        const Content* const in_a = a.contains(name) ? &a.at(name) : nullptr;
        const Content* const in_b = b.contains(name) ? &b.at(name) : nullptr;
        const bool is_there = check_export(store, name, in_a, in_b);
        INFO(name);
        if (in_a != nullptr && in_b != nullptr) REQUIRE(is_there);
      }
    };
    check_map(sure.current, next.current);
    check_map(sure.versions, next.versions);
  }

  // Every folder is a volume that has a name or forks; what is allocated in it is mapped.
  void check_space(MemoryBackend& after) const {
    Store store(std::make_unique<ForwardingBackend>(after), StoreOptions{});
    std::set<std::string> needed;
    for (const VolumeInfo& info : store.list_volumes()) needed.insert(info.uuid.text());
    const std::vector<std::string> folders = after.list("volumes");
    for (size_t round = 0; round < folders.size(); ++round) {
      for (const std::string& folder : folders) {
        if (!needed.contains(folder)) continue;
        Uuid fork;
        REQUIRE(parse_uuid(folder, fork));
        const Uuid parent = read_header(after, "volumes/" + folder, fork).parent;
        if (!parent.is_nil()) needed.insert(parent.text());
      }
    }
    std::string listing;
    for (const std::string& folder : folders) {
      listing += "\n  " + folder;
      for (const std::string& part : after.list("volumes/" + folder)) listing += " " + part;
    }
    for (const std::string& name : after.list("names"))
      listing += "\n  " + name + " " + to_text(*after.get("names/" + name, 256));
    for (const std::string& folder : folders) {
      INFO("folder " << folder << " of" << listing);
      REQUIRE(needed.contains(folder));
      Uuid uuid;
      REQUIRE(parse_uuid(folder, uuid));
      check_no_leak(after, uuid, kDiskBytes);
    }
  }

  MemoryBackend& backend_;
  std::unique_ptr<Store> store_;
  std::vector<State> states_;
  uint64_t next_value_ = 1;
};

}  // namespace

TEST_CASE("a crash while volumes are forked, flattened and removed loses and leaks nothing") {
  Random random(test_seed());
  const auto backend = memory_store();
  backend->set_recording(false);
  backend->set_recording(true);
  Script script(*backend);
  script.run();
  uint64_t states = 0;
  constexpr MemoryBackend::Crash kKinds[] = {MemoryBackend::Crash::kKill,
                                             MemoryBackend::Crash::kLoseUnsynced,
                                             MemoryBackend::Crash::kRandom};
  for (CrashWalker walker(*backend);; walker.advance()) {
    for (const auto kind : kKinds) {
      if (kIsSanitized && !random.chance(12)) continue;
      const uint64_t events = walker.event_count();
      INFO("crash " << static_cast<int>(kind) << " behind event " << events << ": "
                    << (events == 0 ? "-" : backend->describe_event(events - 1)));
      const auto after = walker.crash(kind, random.below(UINT64_MAX));
      const bool continues = random.chance(8);
      script.check(*after, events, !continues && random.chance(3), !continues && random.chance(2));
      ++states;
      // What was done after the crash may be lost by another one.
      if (!continues) continue;
      const auto again =
          after->crash(after->event_count(), kKinds[random.below(3)], random.below(UINT64_MAX));
      script.check(*again, events, true, random.chance(2));
    }
    if (walker.is_at_end()) break;
  }
  MESSAGE(states << " states");
  CHECK(states > 150);
}

}  // namespace tplstore::fork_crash_test
