// Memory runs out: each allocation of a volume's life fails, one after the other, and with it those
// that follow in the same operation, or none of them. An operation that fails says so; whatever
// happens, each block shows what was written to it, after a crash what was flushed or something
// written since, and the process goes on.
//
// This program has an operator new of its own. Storage itself is spared, but each call to it may
// fail as it begins, as one that allocates does.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "volume_patient.h"

namespace {

// Allocations that still succeed; then `failures_left` of them fail. Negative: all succeed.
std::atomic<int64_t> successes_left{-1};
std::atomic<int64_t> failures_left{0};
std::atomic<uint64_t> failures{0};
// Whether the allocations of this thread may fail.
thread_local bool is_exposed = false;
std::atomic<bool> is_everybody_exposed{false};

bool is_to_fail() {
  if (!(is_exposed || is_everybody_exposed.load(std::memory_order_relaxed)) ||
      successes_left.load(std::memory_order_relaxed) < 0)
    return false;
  if (successes_left.fetch_sub(1) > 0) return false;
  successes_left = 0;
  if (failures_left.fetch_sub(1) <= 0) {
    failures_left = 0;
    successes_left = -1;
    return false;
  }
  ++failures;
  return true;
}

void* allocate(std::size_t size) {
  if (is_to_fail()) throw std::bad_alloc();
  void* memory = std::malloc(std::max<std::size_t>(size, 1));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void* allocate(std::size_t size, std::align_val_t alignment) {
  if (is_to_fail()) throw std::bad_alloc();
  const auto unit = static_cast<std::size_t>(alignment);
  void* memory =
      std::aligned_alloc(unit, (std::max<std::size_t>(size, 1) + unit - 1) / unit * unit);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, alignment);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace tplstore {
namespace {

// Makes the allocations of this thread ones that may fail, or spares them, for a while.
template <bool kExposes>
class Expose {
 public:
  Expose() = default;
  ~Expose() { is_exposed = before_; }
  Expose(const Expose&) = delete;

 private:
  const bool before_ = std::exchange(is_exposed, kExposes);
};
using Exposure = Expose<true>;
using Spare = Expose<false>;

void arm(uint64_t successes, uint64_t failing) {
  failures = 0;
  failures_left = static_cast<int64_t>(failing);
  successes_left = static_cast<int64_t>(successes);
}
void disarm() { successes_left = -1; }

class Shortage final : public Illness {
 public:
  Shortage(uint64_t successes, uint64_t failing) { arm(successes, failing); }
  ~Shortage() override { disarm(); }
  bool has_struck() const override { return failures > 0; }
  void expose(const std::function<void()>& work) override {
    const uint64_t before = failures;
    try {
      const Exposure exposure;
      work();
    } catch (...) {
      if (failures > before) disarm();
      throw;
    }
    if (failures > before) disarm();
  }
};

// Calls of the backend that is behind this one fail before they begin, or not at all.
void spare_memory_of(ForwardingBackend& backend) {
  backend.around = [](ForwardingBackend::Call, const std::string&,
                      const std::function<void()>& go_on) {
    operator delete(operator new(1));
    const Spare spare;
    go_on();
  };
}

// One life in which `failing` allocations fail after so many; false when it needs fewer.
bool live(const Ward& ward, uint64_t successes, uint64_t failing, bool closes) {
  const auto memory = ward.admit();
  ForwardingBackend backend(*memory);
  spare_memory_of(backend);
  Shortage shortage(successes, failing);
  Patient patient = ward.patient(shortage, backend);
  size_t step = 0;
  for (const auto& action : script()) {
    INFO("step " << step++);
    action(patient);
    patient.check_alive();
  }
  if (closes) {
    patient.close();
  } else {
    patient.crash();
  }
  const auto after = memory->crash(memory->event_count(), MemoryBackend::Crash::kLoseUnsynced, 0);
  // Where nothing can be punched any more, what a failed write leaves cannot be taken back.
  patient.check_again(*after, failing > 1);
  return shortage.has_struck();
}

}  // namespace

TEST_CASE("whichever allocation fails, nothing is lost that was flushed, and nothing ends") {
  Ward ward;
  for (const uint64_t failing : {1, 1'000'000}) {
    uint64_t lives = 0;
    // Sanitizers make it slow: with them, some of the allocations, others each time.
    const uint64_t step = kIsSanitized ? 7 : 1;
    for (uint64_t successes = test_seed() % step;; successes += step) {
      INFO(failing << " allocations fail after " << successes);
      ++lives;
      if (!live(ward, successes, failing, successes % 2 == 0)) break;
    }
    MESSAGE(lives << " lives");
  }
}

TEST_CASE("a store whose upkeep finds no memory goes on") {
  auto memory = memory_store();
  Store store(std::make_unique<ForwardingBackend>(*memory), {});
  store.create_volume("vm", kPatientBytes, "");
  auto disk = store.open_export("vm", test_peer());
  disk->write(0, content_of(0, 1), false);
  store.start();
  // This thread only waits, and allocates nothing.
  arm(0, 4);
  is_everybody_exposed = true;
  while (failures < 4) std::this_thread::yield();
  is_everybody_exposed = false;
  disarm();
  disk->write(kUnitBytes, content_of(1, 1), true);
  ByteVector bytes(kUnitBytes);
  disk->read(kUnitBytes, bytes);
  CHECK(bytes == content_of(1, 1));
}

// Opens the volume with each of the allocations failing that this makes; after each of them a
// connection gets in that has memory.
void open_without_memory(Store& store, const std::string& name, const Peer& peer) {
  bool was_let_in = false;
  for (uint64_t successes = 0; !was_let_in; ++successes) {
    INFO("an allocation fails after " << successes);
    arm(successes, 1);
    is_exposed = true;
    try {
      const auto disk = store.open_export(name, peer);
      was_let_in = failures == 0;
    } catch (const std::exception&) {
      // Whatever has failed: it has ended, and left nothing behind.
    }
    is_exposed = false;
    disarm();
    CHECK(store.open_export(name, peer) != nullptr);
  }
}

TEST_CASE("a connection that finds no memory is refused, and the next one is let in") {
  auto memory = memory_store();
  auto backend = std::make_unique<ForwardingBackend>(*memory);
  spare_memory_of(*backend);
  Store store(std::move(backend), {});
  store.create_volume("vm", kPatientBytes, "");
  open_without_memory(store, "vm", test_peer());
  // One that joins others of its VM.
  const std::string name = "vm;writer=t;multi";
  const auto first = store.open_export(name, test_peer());
  open_without_memory(store, name, test_peer());
  first->write(0, content_of(1, 1), true);
}

}  // namespace tplstore
