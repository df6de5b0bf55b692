// Each sync of a volume's life fails, one after the other: what it was to make durable can be read
// until the power fails, and never gets to the disk. Who was told that something is durable finds
// it after a power cut.
#include "volume_patient.h"

namespace tplstore {
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
  FailingSync failing(*memory, backend, Volume::folder_of(ward.uuid()), skipped);
  Patient patient = ward.patient(failing, backend);
  for (const auto& action : script()) action(patient);
  if (closes) {
    patient.close();
  } else {
    patient.crash();
  }
  memory->fail_next_sync(Volume::folder_of(ward.uuid()), 0);
  INFO("of " << failing.victim());
  const auto after = memory->crash(memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
  patient.check_again(*after, true);
  return failing.has_struck();
}

}  // namespace

TEST_CASE("whichever sync fails, nothing is lost of what was said to be durable") {
  const Ward ward;
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

}  // namespace tplstore
