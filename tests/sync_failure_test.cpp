// Each sync of a volume's life fails, one after the other: what it was to make durable can be read
// until the power fails, and never gets to the disk. Who was told that something is durable finds
// it after a power cut.
#include "volume_patient.h"

namespace tplstore::sync_failure_test {
namespace {

class FailingSync final : public Illness {
 public:
  FailingSync(MemoryBackend& memory, ForwardingBackend& backend, const std::string& folder,
              uint64_t skipped) {
    memory.fail_next_sync(folder, EIO, skipped);
    backend.around = [this](ForwardingBackend::Call, const std::string& name,
                            const std::function<void()>& go_on) {
      try {
        go_on();
      } catch (const Error& error) {
        if (error.code() == EIO && victim_.empty()) victim_ = name;
        throw;
      }
    };
  }
  bool has_struck() const override { return !victim_.empty(); }
  void expose(const std::function<void()>& work) override { work(); }
  const std::string& victim() const { return victim_; }

 private:
  std::string victim_;
};

// One life in which a sync fails after so many; false when it needs fewer.
bool live(const Ward& ward, uint64_t skipped, bool closes) {
  const auto memory = ward.admit();
  ForwardingBackend backend(*memory);
  FailingSync failing(*memory, backend, volume_folder(ward.uuid()), skipped);
  Patient patient = ward.patient(failing, backend);
  for (const auto& action : script()) action(patient);
  if (closes) {
    patient.close();
  } else {
    patient.crash();
  }
  memory->fail_next_sync(volume_folder(ward.uuid()), 0);
  INFO("of " << failing.victim());
  const auto after = memory->crash(memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
  patient.check_again(*after, true);
  return failing.has_struck();
}

}  // namespace

TEST_CASE("whichever sync fails, nothing is lost of what was said to be durable") {
  for (const bool was_closed : {true, false}) {
    INFO("closed before: " << was_closed);
    const Ward ward(was_closed);
    uint64_t lives = 0;
    for (uint64_t successes = 0;; ++successes) {
      INFO("a sync fails after " << successes);
      const bool has_failed_closing = live(ward, successes, true);
      const bool has_failed = live(ward, successes, false);
      lives += 2;
      if (!has_failed_closing && !has_failed) break;
    }
    MESSAGE(lives << " lives");
  }
}

TEST_CASE("a volume whose closing has failed is not taken for closed") {
  for (const bool was_closed : {true, false}) {
    INFO("closed before: " << was_closed);
    const Ward ward(was_closed);
    uint64_t failures = 0;
    for (;; ++failures) {
      INFO("a sync of the closing fails after " << failures);
      const auto memory = ward.admit();
      ForwardingBackend backend(*memory);
      std::vector<std::string> lines;
      VolumeEnvironment environment = environment_on(backend);
      environment.log = [&](const std::string& line) { lines.push_back(line); };
      auto volume = Volume::open_for_writing(environment, ward.uuid(), "vm", test_peer());
      // An overwrite and a first write, of which a flush has said that they are durable, and two
      // of which nobody has.
      volume->write(offset_of(1), content_of(1, 100), false);
      volume->write(offset_of(8), content_of(8, 101), true);
      volume->write(offset_of(0), content_of(0, 102), false);
      volume->write(offset_of(12), content_of(12, 103), false);
      lines.clear();
      const std::string folder = volume_folder(ward.uuid());
      const FailingSync failing(*memory, backend, folder, failures);
      volume->close();
      volume.reset();
      memory->fail_next_sync(folder, 0);
      const bool has_failed = failing.has_struck();
      INFO("of " << failing.victim());
      CHECK(lines.empty() != has_failed);
      // The next one builds on what it shows, and has nothing to sync for a flush.
      const auto show = [&](Backend& there) {
        const auto next = open_volume(there, ward.uuid());
        const ByteVector shown = read_bytes(*next, 0, offset_of(0), kUnits * kUnitBytes);
        next->flush();
        return shown;
      };
      const ByteVector shown = show(*memory);
      const auto unit = [&](uint64_t i) {
        return ByteVector(shown.begin() + i * kUnitBytes, shown.begin() + (i + 1) * kUnitBytes);
      };
      CHECK(unit(1) == content_of(1, 100));
      CHECK(unit(8) == content_of(8, 101));
      const auto after =
          memory->crash(memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
      CHECK(show(*after) == shown);
      if (!has_failed) break;
    }
    CHECK(failures > 5);
  }
}

}  // namespace tplstore::sync_failure_test
