// Segments that are read from copies: which are right, wrong, failing, hanging, coming and going.
#include "template/segment_copies.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "barrier.h"
#include "forwarding_backend.h"
#include "memory/memory_backend.h"
#include "store_testing.h"
#include "template/block_source.h"
#include "template_testing.h"

namespace tplstore::segment_copies_test {
using namespace tplstore::testing;

namespace {

constexpr uint32_t kBlocks = 20;

// A directory of copies, and what happens to it.
class Copies final : public SegmentCopies {
 public:
  MemoryBackend memory;
  ForwardingBackend backend{memory};
  std::atomic<bool> may_begin{true};
  std::atomic<int> opened{0}, alive{0}, under_way{0}, read{0}, failed{0}, damaged{0};
  std::atomic<uint64_t> bytes_at_origin{0};
  std::function<void()> while_opening;

  std::unique_ptr<SegmentCopy> open(const Hash128& name, uint32_t) noexcept override {
    ++opened;
    if (while_opening) while_opening();
    try {
      return std::make_unique<Copy>(*this, name);
    } catch (const Error&) {
      return nullptr;
    }
  }
  void was_read_at_origin(const Hash128&, uint32_t, uint64_t bytes) noexcept override {
    bytes_at_origin += bytes;
  }
  void change() { ++generation_; }
  bool put(MemoryBackend& origin, const Hash128& name) {
    return memory.put_new(segment_path(name), origin.content(segment_path(name)));
  }

 private:
  class Copy final : public SegmentCopy {
   public:
    Copy(Copies& copies, const Hash128& name)
        : copies_(copies),
          object_(copies.backend.open(segment_path(name), Access::kRead, Purpose::kData)),
          table_(read_segment_table(*object_, name, kTestSecret)) {
      ++copies_.alive;
    }
    ~Copy() override { --copies_.alive; }
    Object& object() override { return *object_; }
    const std::vector<Hash128>& table() const override { return table_; }
    bool begin() noexcept override {
      if (!copies_.may_begin) return false;
      ++copies_.under_way;
      return true;
    }
    void end(Outcome outcome, uint64_t, const std::exception_ptr& error) noexcept override {
      --copies_.under_way;
      CHECK((outcome == Outcome::kFailed) == (error != nullptr));
      ++(outcome == Outcome::kRead     ? copies_.read
         : outcome == Outcome::kFailed ? copies_.failed
                                       : copies_.damaged);
    }

   private:
    Copies& copies_;
    const std::unique_ptr<Object> object_;
    const std::vector<Hash128> table_;
  };
};

struct Fixture {
  MemoryBackend memory;
  ForwardingBackend origin{memory};
  Copies copies;
  BlockSource blocks{origin};
  std::vector<uint64_t> numbers;
  ByteVector disk;
  Hash128 name;
  std::shared_ptr<BlockSource::Segment> segment;
  std::atomic<int> origin_reads{0};

  Fixture() {
    for (uint64_t i = 0; i < kBlocks; ++i) numbers.push_back(i + 1);
    disk = disk_of(numbers);
    make_template(memory, "a", numbers, disk.size(), kBlocks);
    name = list_segments(memory).at(0);
    blocks.set_copies(copies, kTestSecret);
    segment = blocks.hold(name, kBlocks);
    origin.on_read = [this](const std::string&) { ++origin_reads; };
  }
  bool reads_right(uint64_t offset, size_t length) {
    ByteVector into(length, std::byte{0xee});
    segment->read(offset, into);
    return std::memcmp(into.data(), disk.data() + offset, length) == 0;
  }
  bool reads_right() { return reads_right(0, disk.size()); }
};

}  // namespace

TEST_CASE("a segment is read from its copy, whatever part of it is asked for") {
  Fixture f;
  f.copies.put(f.memory, f.name);
  std::mt19937_64 random(1);
  for (int i = 0; i < 500; ++i) {
    const uint64_t offset = random() % f.disk.size();
    const size_t length = 1 + random() % std::min<uint64_t>(f.disk.size() - offset, 30'000);
    REQUIRE(f.reads_right(offset, length));
  }
  CHECK(f.origin_reads == 0);
  CHECK(f.copies.opened == 1);
  CHECK(f.copies.under_way == 0);
  CHECK(f.copies.bytes_at_origin == 0);
}

TEST_CASE("without a copy the origin is read, no more of it than was asked for, and that is told") {
  Fixture f;
  CHECK(f.reads_right(8192 + 512, 1024));
  CHECK(f.reads_right(0, 4096));
  CHECK(f.origin_reads == 2);
  CHECK(f.copies.bytes_at_origin == 1024 + 4096);
  CHECK(f.copies.opened == 1);
  // It comes, and that is told.
  f.copies.put(f.memory, f.name);
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 3);
  f.blocks.look_again(f.name);
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 3);
  CHECK(f.copies.opened == 2);
}

TEST_CASE("a damaged block of a copy is never served") {
  for (const uint64_t damaged_byte : {0, 4095, 4096 * 7 + 1000, 4096 * 20 - 1}) {
    CAPTURE(damaged_byte);
    Fixture f;
    ByteVector content = f.memory.content(segment_path(f.name));
    content[damaged_byte] ^= std::byte{1};
    f.copies.memory.put_new(segment_path(f.name), content);
    // What is sound is read there.
    const uint64_t sound = damaged_byte < 4096 * 10 ? 4096 * 15 : 0;
    CHECK(f.reads_right(sound, 4096 * 4));
    CHECK(f.origin_reads == 0);
    CHECK(f.reads_right(damaged_byte, 1));
    CHECK(f.reads_right());
    CHECK(f.copies.damaged == 1);
    CHECK(f.copies.under_way == 0);
    // The copy is not used again until somebody says that there may be another.
    CHECK(f.copies.opened == 1);
    CHECK(f.copies.alive == 1);
    f.blocks.free_unused_copies();
    CHECK(f.copies.alive == 0);
    f.copies.memory.remove(segment_path(f.name));
    f.copies.put(f.memory, f.name);
    f.blocks.look_again(f.name);
    const int reads = f.origin_reads;
    CHECK(f.reads_right());
    CHECK(f.origin_reads == reads);
  }
}

TEST_CASE("what cannot be read of a copy, or may not now, is read at the origin") {
  Fixture f;
  f.copies.put(f.memory, f.name);
  CHECK(f.reads_right());
  f.copies.may_begin = false;
  CHECK(f.reads_right());
  CHECK(f.reads_right(100, 5000));
  CHECK(f.copies.failed == 0);
  // It hangs no more.
  f.copies.may_begin = true;
  const int reads = f.origin_reads;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == reads);

  f.copies.backend.on_read = [](const std::string&) { fail(EIO, "copy", "broken"); };
  CHECK(f.reads_right());
  CHECK(f.reads_right(100, 5000));
  CHECK(f.copies.failed == 1);
  CHECK(f.copies.under_way == 0);
  f.copies.backend.on_read = nullptr;
  f.copies.change();
  const int more_reads = f.origin_reads;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == more_reads);
}

TEST_CASE("a copy serves when the origin is gone, another one when the first is damaged") {
  Fixture f;
  f.copies.put(f.memory, f.name);
  f.origin.around = [](ForwardingBackend::Call, const std::string&, const std::function<void()>&) {
    fail(EIO, "origin", "unmounted");
  };
  CHECK(f.reads_right());
  f.copies.backend.around = [&](ForwardingBackend::Call call, const std::string&,
                                const std::function<void()>& go_on) {
    if (call == ForwardingBackend::Call::kRead) {
      f.copies.backend.around = nullptr;
      f.copies.change();
      fail(EIO, "copy", "broken");
    }
    go_on();
  };
  CHECK(f.reads_right());
  CHECK(f.copies.opened == 2);
  // Neither has it.
  f.copies.may_begin = false;
  ByteVector into(4096);
  CHECK(thrown_by([&] { f.segment->read(0, into); }).code == EIO);
}

TEST_CASE("a copy of another length than the segment is none") {
  Fixture f;
  f.copies.put(f.memory, f.name);
  f.segment = f.blocks.hold(f.name, kBlocks - 1);
  ByteVector into(4096);
  CHECK(thrown_by([&] { f.segment->read(0, into); }).code == EIO);
  CHECK(f.copies.read == 0);
}

TEST_CASE("nobody waits for a copy that takes long to be opened") {
  Fixture f;
  f.copies.put(f.memory, f.name);
  Barrier barrier;
  f.copies.while_opening = [&] { barrier.hold(); };
  std::atomic<bool> was_right = false;
  std::thread first([&] { was_right = f.reads_right(); });
  barrier.await(1);
  for (int i = 0; i < 100; ++i) CHECK(f.reads_right(0, 4096));
  CHECK(f.origin_reads == 100);
  // What is told meanwhile counts.
  f.blocks.look_again(f.name);
  barrier.open();
  first.join();
  CHECK(was_right);
  CHECK(f.copies.opened == 1);
  CHECK(f.reads_right());
  CHECK(f.copies.opened == 2);
}

TEST_CASE("a copy that is left lasts as long as the requests that read from it") {
  Fixture f;
  f.copies.put(f.memory, f.name);
  Barrier barrier;
  std::atomic<bool> is_reading = false;
  CHECK(f.reads_right());
  f.copies.backend.on_read = [&](const std::string&) {
    if (!is_reading.exchange(true)) barrier.hold();
  };
  std::atomic<bool> was_right = false;
  std::thread slow([&] { was_right = f.reads_right(); });
  barrier.await(1);
  f.copies.change();
  CHECK(f.reads_right());
  CHECK(f.copies.alive == 2);
  f.blocks.free_unused_copies();
  CHECK(f.copies.alive == 2);
  barrier.open();
  slow.join();
  CHECK(was_right);
  f.blocks.free_unused_copies();
  CHECK(f.copies.alive == 1);
}

TEST_CASE("copies come, go, fail and are damaged while many read") {
  Fixture f;
  std::random_device device;
  const uint64_t seed = device();
  MESSAGE("seed ", seed);
  std::atomic<bool> ends = false;
  std::atomic<int> wrong = 0, done = 0;
  std::atomic<uint64_t> failing{0};
  f.copies.backend.on_read = [&](const std::string&) {
    if (failing.load() % 3 == 1) fail(EIO, "copy", "broken");
  };
  std::vector<std::thread> readers;
  for (uint64_t t = 0; t < 4; ++t)
    readers.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      for (int i = 0; i < 3000; ++i) {
        const uint64_t offset = random() % f.disk.size();
        const size_t length = 1 + random() % std::min<uint64_t>(f.disk.size() - offset, 20'000);
        if (!f.reads_right(offset, length)) ++wrong;
        ++done;
      }
    });
  std::thread changes([&] {
    std::mt19937_64 random(seed + 99);
    ByteVector content = f.memory.content(segment_path(f.name));
    while (!ends) {
      f.copies.memory.remove(segment_path(f.name));
      ByteVector copy = content;
      if (random() % 2 == 0) copy[random() % f.disk.size()] ^= std::byte{4};
      f.copies.memory.put_new(segment_path(f.name), copy);
      ++failing;
      f.copies.may_begin = random() % 4 != 0;
      random() % 2 == 0 ? f.copies.change() : f.blocks.look_again(f.name);
      f.blocks.free_unused_copies();
      for (const int before = done; !ends && done < before + 20;) std::this_thread::yield();
    }
  });
  for (std::thread& reader : readers) reader.join();
  ends = true;
  changes.join();
  CHECK(wrong == 0);
  CHECK(f.copies.under_way == 0);
  f.blocks.free_unused_copies();
  f.segment.reset();
  CHECK(f.copies.alive == 0);
  CHECK(f.copies.read > 0);
}

}  // namespace tplstore::segment_copies_test
