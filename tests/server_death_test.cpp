// What the death of a server's process may do to a volume: nothing that was acknowledged to a VM is
// gone, flushed or not, at whatever step the process dies, that of opening the volume again
// included. What a power cut or a failed sync takes is told: the VM does not get the volume again.
//
// Random lives, each of which ends in the middle of something; the model knows of each block what
// was acknowledged last, what was under way, and what was written since it was durable. With
// TPLSTORE_STEPS each call of the backend is told too.
#include <map>
#include <set>

#include "forwarding_backend.h"
#include "memory_journals.h"
#include "volume_testing.h"

namespace tplstore::server_death_test {
namespace {

using Call = ForwardingBackend::Call;

constexpr uint64_t kBlocks[] = {0, 1, 2, 1023, 1024, 1500};
constexpr size_t kBlockCount = std::size(kBlocks);
using Values = std::array<uint64_t, kBlockCount>;  // 0: zeroes

ByteVector content_of(uint64_t value, size_t length = kBlockBytes) {
  ByteVector bytes(length);
  for (size_t i = 0; i < length; i += 8) std::memcpy(bytes.data() + i, &value, 8);
  return bytes;
}

struct Faults {
  bool power = false;
  bool syncs = false;
  bool room = false;  // that there is for what is not committed
};

class World {
 public:
  World(uint64_t seed, const Faults& faults)
      : random_(seed),
        faults_(faults),
        memory_(memory_store()),
        journals_(std::make_unique<MemoryJournals>(faults.room ? uint64_t{16} << random_.below(6)
                                                               : uint64_t{8} << 10)),
        uuid_(random_uuid()) {
    create_volume(*memory_, uuid_, 2 * kRegionBytes, nullptr);
    for (auto& values : since_) values.insert(0);
  }

  void live() {
    ForwardingBackend front(*memory_);
    VolumeEnvironment environment = environment_on(front);
    environment.journals = journals_.get();
    is_dead_ = false;
    until_death_ = random_.chance(3) ? random_.below(30) : random_.below(200);
    front.around = [&](Call call, const std::string& name, const std::function<void()>& go_on) {
      step(call, name, go_on);
    };
    std::unique_ptr<Volume> volume;
    try {
      volume = open(environment);
      check(*volume);
      for (uint64_t i = 5 + random_.below(40); i > 0 && !is_dead_; --i) change(volume, environment);
    } catch (const Error& error) {
      INFO(std::string(error.what()));
      REQUIRE((is_dead_ || has_sync_failed_));
    }
    if (!is_dead_) die();
    volume.reset();
    memory_ = std::move(memory_left_);
    journals_ = std::move(journals_left_);
  }

  uint64_t losses() const { return losses_; }
  const std::string& story() const { return story_; }

 private:
  // What the backend is asked to do; the process dies before one of these, or of the error of one.
  void step(Call call, const std::string& name, const std::function<void()>& go_on) {
    if (is_dead_) fail(EIO, name, "the process is dead");
    if (std::getenv("TPLSTORE_STEPS") != nullptr) tell("    {} {}", static_cast<int>(call), name);
    const bool is_change = call != Call::kOpen && call != Call::kRead && call != Call::kGet &&
                           call != Call::kList && call != Call::kLock;
    if (is_change && until_death_-- == 0) {
      die();
      fail(EIO, name, "the process has died");
    }
    try {
      go_on();
    } catch (const Error& error) {
      if (call == Call::kSync && error.code() == EIO) {
        has_sync_failed_ = true;
        tell("a sync of {} fails", name);
        if (random_.chance(2)) {
          is_unheard_ = true;
          die();
        }
      }
      throw;
    }
  }

  void die() {
    is_dead_ = true;
    const bool is_power_cut = faults_.power && random_.chance(3);
    journals_left_ = journals_->left();
    if (is_power_cut) {
      const auto kind =
          random_.chance(2) ? MemoryBackend::Crash::kRandom : MemoryBackend::Crash::kLoseUnsynced;
      memory_left_ = memory_->crash(memory_->event_count(), kind, random_.below(UINT64_MAX));
      journals_left_->reboot(random_.chance(2));
      has_lost_power_ = true;
    } else {
      memory_left_ = memory_->clone();
    }
    tell("{}", is_power_cut ? "POWER CUT" : "KILL");
  }

  std::unique_ptr<Volume> open(const VolumeEnvironment& environment) {
    tell("opening for {}", vm_.pid);
    try {
      return Volume::open_for_writing(environment, uuid_, "vm", claim());
    } catch (const Error& error) {
      const std::string text = error.what();
      if (is_dead_ || text.find("is lost with the server") == std::string::npos) throw;
      REQUIRE(error.code() == EBUSY);
    }
    tell("is told of a loss");
    ++losses_;
    is_told_ = true;
    REQUIRE((has_lost_power_ || has_sync_failed_ || faults_.room));
    vm_ = new_peer();
    return Volume::open_for_writing(environment, uuid_, "vm", claim());
  }
  Claim claim() const {
    Claim claim(vm_);
    claim.is_connection = true;
    return claim;
  }

  void check(Volume& volume) {
    for (size_t i = 0; i < kBlockCount; ++i) {
      // A power cut tears blocks, but not sectors: the first one stands for the block.
      const ByteVector bytes = read_bytes(volume, 0, kBlocks[i] * kBlockBytes, kSectorBytes);
      uint64_t value = 0;
      std::memcpy(&value, bytes.data(), sizeof value);
      INFO("block " << kBlocks[i] << " has value " << value << ", acknowledged was " << acked_[i]);
      REQUIRE(bytes == content_of(value, kSectorBytes));
      const bool is_it = value == acked_[i] || under_way_[i].contains(value);
      // Of what was overwritten in place nobody can tell, as of a raw file.
      if (!is_told_ && !(is_unheard_ && is_overwritten_[i])) REQUIRE(is_it);
      REQUIRE((is_it || since_[i].contains(value)));
      acked_[i] = value;
      under_way_[i].clear();
      since_[i] = {value};
    }
    std::map<uint32_t, Values> there;
    for (const VersionRecord& record : volume.versions().records()) {
      if (record.is_hidden()) continue;
      const auto known = versions_.find(record.number);
      const bool is_known = known != versions_.end();
      REQUIRE((is_known || record.number == unsure_version_));
      Values values = is_known ? known->second : unsure_values_;
      for (size_t i = 0; i < kBlockCount; ++i) {
        if (!is_known && is_unheard_ && is_overwritten_[i]) {
          const ByteVector bytes =
              read_bytes(volume, record.number, kBlocks[i] * kBlockBytes, sizeof values[i]);
          std::memcpy(&values[i], bytes.data(), sizeof values[i]);
        }
        INFO("block " << kBlocks[i] << " of version " << record.number);
        REQUIRE(read_bytes(volume, record.number, kBlocks[i] * kBlockBytes, kSectorBytes) ==
                content_of(values[i], kSectorBytes));
      }
      there[record.number] = values;
    }
    for (const auto& [number, values] : versions_) {
      INFO("version " << number);
      REQUIRE((there.contains(number) || number == unsure_version_));
    }
    versions_ = there;
    unsure_version_ = 0;
    has_lost_power_ = has_sync_failed_ = is_unheard_ = is_told_ = false;
    // A trim that is lost with its record has made a hole of a cell that is current's still, which
    // is overwritten in place. All that was overwritten before is durable.
    const auto map = VolumeMap::open(*memory_, volume_folder(uuid_), uuid_, Access::kRead);
    for (size_t i = 0; i < kBlockCount; ++i) {
      RunList runs;
      map->find(0, {kBlocks[i], 1}, runs);
      is_currents_[i] = runs[0].source == map->current();
    }
    is_overwritten_ = {};
  }

  void note_flushed() {
    for (size_t i = 0; i < kBlockCount; ++i) since_[i] = {acked_[i]};
  }
  void begin(size_t i, uint64_t value) {
    under_way_[i].insert(value);
    since_[i].insert(value);
  }
  void end(size_t i, uint64_t value) {
    if (value == 0) is_currents_[i] = is_overwritten_[i] = false;
    acked_[i] = value;
    under_way_[i].clear();
  }

  void change(std::unique_ptr<Volume>& volume, const VolumeEnvironment& environment) {
    const size_t i = random_.below(kBlockCount);
    const uint64_t choice = random_.below(24);
    if (choice < 9) {
      const uint64_t value = ++last_value_;
      tell("write {} to block {}", value, kBlocks[i]);
      begin(i, value);
      is_overwritten_[i] = is_currents_[i];
      is_currents_[i] = true;
      volume->write(kBlocks[i] * kBlockBytes, content_of(value), false);
      end(i, value);
    } else if (choice < 13) {
      tell("trim block {}", kBlocks[i]);
      begin(i, 0);
      volume->trim(kBlocks[i] * kBlockBytes, kBlockBytes, false);
      end(i, 0);
    } else if (choice < 14) {
      tell("zero blocks 0 to 2");
      for (size_t j = 0; j < 3; ++j) begin(j, 0);
      volume->zero(0, 3 * kBlockBytes, false);
      for (size_t j = 0; j < 3; ++j) end(j, 0);
    } else if (choice < 16) {
      fail_a_sync();
      tell("flush");
      volume->flush();
      note_flushed();
    } else if (choice < 18) {
      unsure_version_ = volume->versions().current().number;
      unsure_values_ = acked_;
      tell("freeze {}", unsure_version_);
      if (!versions_.empty() && random_.chance(3)) {
        const auto& [number, values] = *versions_.begin();
        for (size_t j = 0; j < kBlockCount; ++j) begin(j, values[j]);
        volume->versions().rollback(std::to_string(number));
        for (size_t j = 0; j < kBlockCount; ++j) end(j, values[j]);
      } else {
        volume->versions().create({});
      }
      versions_[unsure_version_] = unsure_values_;
      unsure_version_ = 0;
      is_currents_ = {};
      note_flushed();
    } else if (choice < 19 && !versions_.empty()) {
      unsure_version_ = versions_.begin()->first;
      tell("remove {}", unsure_version_);
      volume->versions().remove({std::to_string(unsure_version_)});
      versions_.erase(unsure_version_);
      unsure_version_ = 0;
    } else if (choice < 20) {
      tell("give back space");
      volume->space().run();
    } else if (choice < 21) {
      fail_a_sync();
      tell("checkpoint");
      volume->checkpoint();
    } else if (choice < 22) {
      fail_a_sync();
      tell("compaction");
      volume->compact_log();
    } else if (choice < 23) {
      tell("upkeep");
      volume->maintain(random_.chance(2));
    } else {
      tell("close");
      volume->close();
      volume.reset();
      if (is_dead_) return;
      if (!has_sync_failed_) {
        // No journal is left of it.
        REQUIRE(journals_->paths().empty());
        note_flushed();
      }
      volume = open(environment);
      check(*volume);
    }
  }

  void fail_a_sync() {
    constexpr const char* kParts[] = {"/data.", "/data.", "/map."};
    if (!faults_.syncs || !random_.chance(4)) return;
    memory_->fail_next_sync(volume_folder(uuid_) + kParts[random_.below(std::size(kParts))], EIO,
                            random_.below(2));
  }

  template <typename... Arguments>
  void tell(fmt::format_string<Arguments...> text, Arguments&&... arguments) {
    story_ += fmt::format(text, std::forward<Arguments>(arguments)...) + "\n";
  }

  Random random_;
  const Faults faults_;
  std::unique_ptr<MemoryBackend> memory_, memory_left_;
  std::unique_ptr<MemoryJournals> journals_, journals_left_;
  const Uuid uuid_;
  Peer vm_ = new_peer();
  std::string story_;

  bool is_dead_ = false;
  uint64_t until_death_ = 0;
  // Since the volume was looked at.
  bool has_lost_power_ = false;
  bool has_sync_failed_ = false;
  bool is_unheard_ = false;  // and the process died of it
  bool is_told_ = false;
  uint64_t losses_ = 0;

  uint64_t last_value_ = 0;
  Values acked_{};
  std::array<std::set<uint64_t>, kBlockCount> under_way_;
  std::array<std::set<uint64_t>, kBlockCount> since_;  // what was written since it was durable
  // Whether a block's cell is current's, and whether it was before the last write.
  std::array<bool, kBlockCount> is_currents_{};
  std::array<bool, kBlockCount> is_overwritten_{};
  std::map<uint32_t, Values> versions_;
  uint32_t unsure_version_ = 0;  // being made or removed
  Values unsure_values_{};
};

uint64_t explore(const Faults& faults) {
  const uint64_t seed = test_seed();
  uint64_t losses = 0;
  for (uint64_t run = 0; run < test_operations(kIsSanitized ? 60 : 400); ++run) {
    World world(seed + run, faults);
    INFO("run " << run);
    for (int life = 0; life < 8; ++life) {
      INFO(world.story());
      world.live();
    }
    losses += world.losses();
  }
  return losses;
}

}  // namespace

TEST_CASE("what was acknowledged survives the death of the process, whenever that is") {
  CHECK(explore({}) == 0);
}

TEST_CASE("what a power cut takes is told to the VM that had written it") {
  CHECK(explore({.power = true}) > 0);
}

TEST_CASE("what there is no room for is lost with the process, and that is told") {
  CHECK(explore({.room = true}) > 0);
}

TEST_CASE("what a failed sync takes is told, whoever hears of that") {
  CHECK(explore({.power = true, .syncs = true}) > 0);
}

}  // namespace tplstore::server_death_test
