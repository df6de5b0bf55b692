// The memory of cells: what is read once for all, what is kept, what goes, and that nobody ever
// reads another cell's bytes.
#include "boot/cell_memory.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>

#include "base/error.h"

namespace tplstore::cell_memory_test {
namespace {

constexpr uint64_t kSlot = kBlockBytes + 16;

// Blocks that say where they are from.
void make_block(uint64_t file, uint64_t block, MutableBytes into) {
  uint64_t state = file * 1000003 + block + 1;
  for (size_t i = 0; i < into.size(); i += sizeof(state)) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(into.data() + i, &state, sizeof(state));
  }
}

class Stored;

// An object whose reads are counted, can fail, be wrong, and wait.
class StoredObject final : public Object {
 public:
  StoredObject(Backend& owner, Stored& stored) : Object(owner), stored_(stored) {}
  void read(uint64_t offset, MutableBytes into) override;
  void write(uint64_t, Bytes) override {}
  void punch(uint64_t, uint64_t) override {}
  void grow(uint64_t) override {}
  void sync() override {}
  void drop_cached() override {}
  uint64_t size_bytes() override { return 0; }
  uint64_t allocated_bytes() override { return 0; }
  std::optional<DataRange> find_data(uint64_t) override { return {}; }

 private:
  Stored& stored_;
};

class Stored final : public CellSource {
 public:
  Stored(Backend& backend, uint64_t number_of) : number(number_of), object_(backend, *this) {}

  void plan_stored(uint64_t offset, MutableBytes into, ReadPlan& plan) override {
    plan.add(object_, offset, into);
  }
  bool are_sound(uint32_t first, Bytes blocks) override {
    ByteVector right(kBlockBytes);
    for (uint64_t i = 0; i < blocks.size() / kBlockBytes; ++i) {
      make_block(number, first + i, right);
      if (std::memcmp(right.data(), blocks.data() + i * kBlockBytes, kBlockBytes) != 0)
        return false;
    }
    return true;
  }
  bool read_sound(uint32_t block, MutableBytes into) override {
    ++read_sound_count;
    if (is_lost) fail(EIO, "cell", "no place has it");
    make_block(number, block, into);
    return !is_unknown;
  }

  const uint64_t number;
  std::atomic<int> reads{0}, read_sound_count{0}, failures{0};
  std::atomic<bool> is_damaged{false}, is_lost{false}, is_unknown{false}, waits{false};
  std::mutex mutex;
  std::condition_variable changed;
  int waiting = 0;

 private:
  friend class StoredObject;
  StoredObject object_;
};

void StoredObject::read(uint64_t offset, MutableBytes into) {
  ++stored_.reads;
  {
    std::unique_lock guard(stored_.mutex);
    ++stored_.waiting;
    stored_.changed.notify_all();
    stored_.changed.wait(guard, [&] { return !stored_.waits; });
    --stored_.waiting;
  }
  if (stored_.failures > 0 && stored_.failures-- > 0) fail(EIO, "object", "cannot be read");
  ByteVector block(kBlockBytes);
  for (uint64_t done = 0; done < into.size();) {
    const uint64_t at = offset + done;
    const uint64_t count = std::min(into.size() - done, kBlockBytes - at % kBlockBytes);
    make_block(stored_.number, at / kBlockBytes, block);
    if (stored_.is_damaged) block[17] ^= std::byte{1};
    std::memcpy(into.data() + done, block.data() + at % kBlockBytes, count);
    done += count;
  }
}

struct Fixture {
  explicit Fixture(uint64_t blocks = 256, size_t files = 2)
      : memory(blocks * kSlot + (files + 1) * 16384, false, [this] {
          is_woken = true;
          is_woken.notify_all();
        }) {
    for (size_t i = 0; i < files; ++i) {
      stored.push_back(std::make_unique<Stored>(backend, i));
      held.push_back(memory.file(key(i)));
    }
  }
  // The first is a segment, the others are versions.
  static CellFileKey key(size_t file) {
    if (file % 2 == 0) return CellFileKey::of_segment({file, 7}, 1024);
    Uuid volume{};
    volume.bytes[0] = 1;
    return CellFileKey::of_version(volume, static_cast<uint32_t>(file));
  }
  ByteVector read(size_t file, uint64_t offset, uint64_t length,
                  CellMemory::Window* window = nullptr) {
    ByteVector into(length);
    ReadPlan plan;
    plan.enter(memory.requests());
    held[file]->plan_read(*stored[file], offset, into, plan, window);
    plan.run();
    return into;
  }
  void check(size_t file, uint64_t offset, uint64_t length, CellMemory::Window* window = nullptr) {
    const ByteVector got = read(file, offset, length, window);
    ByteVector block(kBlockBytes);
    for (uint64_t done = 0; done < length;) {
      const uint64_t at = offset + done;
      const uint64_t count = std::min(length - done, kBlockBytes - at % kBlockBytes);
      make_block(file, at / kBlockBytes, block);
      REQUIRE(std::memcmp(got.data() + done, block.data() + at % kBlockBytes, count) == 0);
      done += count;
    }
  }
  int reads(size_t file) const { return stored[file]->reads; }

  class NoBackend final : public Backend {
   public:
    std::unique_ptr<Object> open(const std::string&, Access, Purpose) override { return {}; }
    std::unique_ptr<Object> create(const std::string&, uint64_t, Purpose) override { return {}; }
    bool put_new(const std::string&, Bytes) override { return false; }
    std::optional<ByteVector> get(const std::string&, uint64_t) override { return {}; }
    std::vector<std::string> list(const std::string&) override { return {}; }
    bool remove(const std::string&) override { return false; }
    void remove_folder(const std::string&) override {}
    void sync_folder(const std::string&) override {}
    using Backend::try_lock;
    std::unique_ptr<HeldLock> try_lock(const std::string&, LockMode, uint64_t) override {
      return {};
    }
    bool is_locked(const std::string&) override { return false; }
    uint32_t write_alignment_bytes() const override { return 1; }
    std::string describe() const override { return "none"; }
  };
  NoBackend backend;
  std::atomic<bool> is_woken{false};
  CellMemory memory;
  std::vector<std::unique_ptr<Stored>> stored;
  std::vector<std::shared_ptr<CellFile>> held;
};

}  // namespace

TEST_CASE("what a window has read is in memory for everybody") {
  Fixture cells;
  cells.check(0, 4096, 8192);
  cells.check(0, 4096, 8192);
  CHECK(cells.reads(0) == 2);  // nothing is taken in without a window
  const auto window = cells.memory.open_window();
  for (const size_t file : {size_t{0}, size_t{1}}) {
    const int before = cells.reads(file);
    cells.check(file, 512, 512, window.get());  // its whole block is read
    cells.check(file, 0, 8192, window.get());
    CHECK(cells.reads(file) == before + 2);
    cells.check(file, 0, 8192);
    cells.check(file, 100, 5000);
    CHECK(cells.reads(file) == before + 2);
    cells.check(file, 1000, 20000);  // some of it is there
    CHECK(cells.reads(file) == before + 3);
  }
  const CellMemoryStats stats = cells.memory.stats();
  CHECK(stats.slots == 4);
  CHECK(stats.fill_bytes == 4 * kBlockBytes);
  CHECK(window->use().cells == 4);
  CHECK(window->use().hits == 2);
  CHECK(window->use().misses == 4);
  window->stop_filling();
  cells.check(0, 40960, 4096, window.get());
  CHECK(cells.memory.stats().slots == 4);
}

TEST_CASE("many who miss the same at once read it once") {
  Fixture cells;
  const auto window = cells.memory.open_window();
  const bool fails = false;
  for (const bool first_fails : {fails, true}) {
    const uint64_t offset = first_fails ? 65536 : 0;
    Stored& stored = *cells.stored[0];
    const int before = stored.reads;
    stored.waits = true;
    stored.failures = first_fails ? 1 : 0;
    std::atomic<int> failed{0};
    std::vector<std::jthread> readers;
    const auto read = [&] {
      try {
        cells.check(0, offset, 16384, window.get());
      } catch (const Error&) {
        ++failed;
      }
    };
    readers.emplace_back(read);
    {
      std::unique_lock guard(stored.mutex);
      stored.changed.wait(guard, [&] { return stored.waiting == 1; });
    }
    const uint64_t waited = cells.memory.stats().waits;
    for (int i = 0; i < 3; ++i) readers.emplace_back(read);
    // They have found it coming when they wait for it.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (cells.memory.stats().waits < waited + 3 && std::chrono::steady_clock::now() < deadline)
      std::this_thread::yield();
    {
      const std::lock_guard guard(stored.mutex);
      stored.waits = false;
      stored.changed.notify_all();
    }
    readers.clear();
    CHECK(failed == (first_fails ? 1 : 0));
    if (first_fails) {
      CHECK(stored.reads > before + 1);
    } else {
      CHECK(stored.reads == before + 1);
    }
  }
  CHECK(cells.memory.stats().fills == 4);
}

TEST_CASE("damage does not enter") {
  Fixture cells;
  const auto window = cells.memory.open_window();
  cells.stored[0]->is_damaged = true;
  cells.check(0, 0, 12288, window.get());
  CHECK(cells.stored[0]->read_sound_count == 3);
  CHECK(cells.memory.stats().verify_failures == 3);
  cells.check(0, 0, 12288);
  cells.stored[0]->is_lost = true;
  CHECK_THROWS_AS(cells.read(0, 40960, 8192, window.get()), Error);
  CHECK(cells.memory.stats().slots == 3);
  cells.stored[0]->is_lost = false;
  cells.stored[0]->is_unknown = true;
  cells.check(0, 40960, 8192, window.get());
  CHECK(cells.memory.stats().slots == 3);
  cells.stored[0]->is_damaged = false;
  cells.check(0, 40960, 8192, window.get());
  CHECK(cells.memory.stats().slots == 5);
}

TEST_CASE("no more than the cap is used, and what belongs to an open window stays") {
  Fixture cells(64, 3);
  auto window = cells.memory.open_window();
  for (uint64_t block = 0; block < 200; ++block)
    cells.check(0, block * kBlockBytes, kBlockBytes, window.get());
  cells.memory.maintain();
  const CellMemoryStats full = cells.memory.stats();
  CHECK(full.refused > 100);
  CHECK(full.evictions == 0);
  CHECK(full.slots >= 64);
  CHECK(full.used <= full.cap);
  // They are still there, and nothing of another window's takes their place.
  auto other = cells.memory.open_window();
  for (uint64_t block = 0; block < 200; ++block) {
    cells.check(1, block * kBlockBytes, kBlockBytes, other.get());
    cells.memory.maintain();
  }
  CHECK(cells.memory.stats().evictions == 0);
  int reads = cells.reads(0);
  for (uint64_t block = 0; block < 50; ++block) cells.check(0, block * kBlockBytes, kBlockBytes);
  CHECK(cells.reads(0) == reads);
  // Both have it: it goes when neither does.
  for (uint64_t block = 0; block < 10; ++block)
    cells.check(0, block * kBlockBytes, kBlockBytes, other.get());
  window.reset();
  for (uint64_t block = 200; block < 500; ++block) {
    cells.check(1, block * kBlockBytes, kBlockBytes, other.get());
    cells.memory.maintain();
  }
  CHECK(cells.memory.stats().evictions > 30);
  reads = cells.reads(0);
  for (uint64_t block = 0; block < 10; ++block) cells.check(0, block * kBlockBytes, kBlockBytes);
  CHECK(cells.reads(0) == reads);
  other.reset();
  cells.memory.forget(std::vector{Fixture::key(0), Fixture::key(1)});
  cells.memory.maintain();
  CHECK(cells.memory.stats().slots == 0);
  cells.held.clear();
  cells.memory.maintain();
  CHECK(cells.memory.stats().used == 0);
  CHECK(cells.memory.stats().peak <= cells.memory.stats().cap);
}

TEST_CASE("a claim is taken in ahead, or was never there") {
  Fixture cells;
  const auto window = cells.memory.open_window();
  const auto reader = cells.memory.open_window();
  cells.check(0, 3 * kBlockBytes, kBlockBytes, reader.get());
  {
    auto claim = cells.memory.claim(*cells.held[0], 0, 10, *window);
    size_t claimed = 0;
    for (const auto& part : claim.parts()) {
      claimed += part.count();
      CHECK(reinterpret_cast<uintptr_t>(part.memory.data()) % kBlockBytes == 0);
    }
    CHECK(claimed == 9);
    const auto& part = claim.parts()[0];
    make_block(0, part.first, part.memory.first(kBlockBytes));
    claim.publish(part.first, 1);
  }
  CHECK(cells.memory.stats().slots == 2);
  CHECK(cells.memory.stats().prefetch_bytes == kBlockBytes);
  CHECK(window->use().prefetched == 1);
  CHECK(window->use().prefetched_unused == 1);
  const int reads = cells.reads(0);
  cells.check(0, 0, kBlockBytes, reader.get());
  CHECK(cells.reads(0) == reads);
  CHECK(reader->use().first_touch_hits == 1);
  CHECK(window->use().prefetched_unused == 0);
  CHECK(cells.memory.stats().prefetch_used == kBlockBytes);
  cells.check(0, kBlockBytes, kBlockBytes, reader.get());
  CHECK(cells.reads(0) == reads + 1);
}

TEST_CASE("versions whose freezing was lost are read anew") {
  Fixture cells;
  auto window = cells.memory.open_window();
  cells.check(1, 0, 40960, window.get());
  cells.memory.forget_versions(Fixture::key(1).volume, 1);
  const auto anew = cells.memory.file(Fixture::key(1));
  CHECK(anew != cells.held[1]);
  cells.held[1] = anew;
  const int reads = cells.reads(1);
  cells.check(1, 0, 40960, window.get());
  CHECK(cells.reads(1) > reads);
  window.reset();
  cells.memory.forget(std::vector{Fixture::key(1)});
  CHECK(cells.memory.cached_bytes(std::vector{Fixture::key(1)}) == 0);
}

TEST_CASE("what is counted beside the cells takes their room") {
  Fixture cells(16, 1);
  const uint64_t cap = cells.memory.stats().cap;
  auto beside = cells.memory.hold_beside(cap - kBlockBytes);
  CHECK(beside);
  CHECK_FALSE(cells.memory.hold_beside(2 * kBlockBytes));
  const auto window = cells.memory.open_window();
  cells.check(0, 0, 65536, window.get());
  CHECK(cells.memory.stats().slots == 0);
  beside.reset();
  cells.check(0, 0, 65536, window.get());
  CHECK(cells.memory.stats().slots == 16);
}

TEST_CASE("eight threads, slots that are used again, and one who evicts") {
  const char* seed_text = std::getenv("TPLSTORE_SEED");
  const uint64_t seed =
      seed_text != nullptr ? std::strtoull(seed_text, nullptr, 10) : std::random_device{}();
  CAPTURE(seed);
  Fixture cells(48, 4);
  std::atomic<bool> ends{false};
  std::atomic<int> wrong{0};
  std::jthread upkeep([&] {
    while (!ends) {
      cells.is_woken.wait(false);
      cells.is_woken = false;
      cells.memory.maintain();
    }
  });
  {
    std::vector<std::jthread> threads;
    for (uint64_t i = 0; i < 8; ++i)
      threads.emplace_back([&, i] {
        std::mt19937_64 random(seed + i);
        auto window = cells.memory.open_window();
        for (int step = 0; step < 4000; ++step) {
          if (random() % 64 == 0) window = cells.memory.open_window();
          const size_t file = random() % 4;
          const uint64_t offset = random() % 120 * kBlockBytes + random() % 2 * 512;
          const uint64_t length = 512 + random() % 6 * 2048;
          if (random() % 16 == 0) cells.memory.forget(std::vector{Fixture::key(file)});
          if (random() % 128 == 0) {
            auto claim = cells.memory.claim(*cells.held[file], random() % 120, 3, *window);
            for (const auto& part : claim.parts()) {
              make_block(file, part.first, part.memory.first(kBlockBytes));
              claim.publish(part.first, 1);
            }
          }
          try {
            cells.check(file, offset, length, random() % 4 == 0 ? nullptr : window.get());
          } catch (const Error&) {
            ++wrong;
          }
        }
      });
  }
  ends = true;
  cells.is_woken = true;
  cells.is_woken.notify_all();
  upkeep.join();
  CHECK(wrong == 0);
  const CellMemoryStats stats = cells.memory.stats();
  CHECK(stats.evictions > 100);
  CHECK(stats.peak <= stats.cap);
  std::vector<CellFileKey> keys;
  for (size_t i = 0; i < 4; ++i) keys.push_back(Fixture::key(i));
  cells.memory.forget(keys);
  cells.memory.maintain();
  cells.held.clear();
  cells.memory.maintain();
  CHECK(cells.memory.stats().slots == 0);
  CHECK(cells.memory.stats().used == 0);
}

}  // namespace tplstore::cell_memory_test
