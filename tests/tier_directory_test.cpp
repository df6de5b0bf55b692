#include <doctest/doctest.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "barrier.h"
#include "template/import_journal.h"
#include "template/template_catalog.h"
#include "tier/directory.h"
#include "tier_testing.h"

namespace tplstore::tier_directory_test {
using namespace tplstore::testing;
using State = TierDirectoryStatus::State;
using Call = ForwardingBackend::Call;

namespace {

constexpr uint64_t kCopyBytes = segment_object_bytes(2);

// One directory, at /ssd.
struct Fixture : TierFixture {
  TierEntry entry;
  std::shared_ptr<TierWorld> world;
  int changes = 0;
  std::shared_ptr<TierDirectory> directory;

  explicit Fixture(uint64_t segment_count = 8, TierEntry::Kind kind = TierEntry::Kind::kSsd)
      : TierFixture(segment_count), entry(add_directory("/ssd", kTierWeightBytesMin, kind)) {
    make();
  }
  void make() {
    world = std::make_shared<TierWorld>(options, [this] { ++changes; });
    directory = std::make_shared<TierDirectory>(world, entry.uuid, shared_table());
  }
  TierDisk& disk() { return disks["/ssd"]; }
  const Hash128& name(size_t i) const { return segments.at(i).name; }
  void want(size_t i) { directory->want({name(i), 2}); }
  void tend() {
    for (int i = 0; i < 1000 && directory->tend() <= 0; ++i) {
    }
  }
  void fill(size_t i) {
    want(i);
    tend();
  }
  bool has(size_t i) { return is_copied("/ssd", name(i)); }
  bool reads(size_t i) {
    const auto copy = directory->open(name(i), 2);
    return copy && read_copy(*copy, options.identity.secret);
  }
  State state() const { return directory->status().state; }
  // Every call of this kind on an object whose name starts so fails.
  void break_calls(Call broken, const std::string& prefix, int code) {
    disk().around = [=](Call call, const std::string& object, const std::function<void()>& go_on) {
      if (call == broken && object.starts_with(prefix)) fail_errno(code, object, "injected");
      go_on();
    };
  }
};

}  // namespace

TEST_CASE("a gate refuses while a few hang, and no sooner") {
  constexpr int64_t kMs = 1'000'000;
  TierGate gate;
  int64_t now = 5'000 * kMs;
  // Long idle is no stall.
  for (int i = 0; i < 10; ++i) CHECK(gate.begin(now));
  now += 100 * kMs;
  CHECK(gate.begin(now));
  now += kMs;
  CHECK_FALSE(gate.begin(now));
  // One ends, so others may.
  gate.end(now, now, false);
  CHECK(gate.begin(now));
  now += 101 * kMs;
  CHECK_FALSE(gate.begin(now));
  CHECK(gate.look(now) == TierGate::Off::kNot);
  now += 5'000 * kMs;
  CHECK(gate.look(now) == TierGate::Off::kHangs);
  CHECK_FALSE(gate.begin(now));
  for (int i = 0; i < 11; ++i) gate.end(now, now, false);
  CHECK_FALSE(gate.begin(now));
}

TEST_CASE("up to three that hang keep nobody out, but not for longer than the hang lasts") {
  TierGate gate;
  for (int i = 0; i < 3; ++i) CHECK(gate.begin(0));
  CHECK(gate.begin(kSecond));
  CHECK_FALSE(gate.begin(kSecond));
  CHECK(gate.look(5 * kSecond) == TierGate::Off::kNot);
  CHECK(gate.look(5 * kSecond + 1) == TierGate::Off::kHangs);
}

TEST_CASE("three errors in a row close a gate, and one slow operation does") {
  TierGate gate;
  for (const bool has_failed : {true, true, false, true, true}) {
    CHECK(gate.begin(0));
    gate.end(0, 0, has_failed);
  }
  CHECK(gate.begin(0));
  gate.end(0, 0, true);
  CHECK(gate.off() == TierGate::Off::kErrors);
  TierGate other;
  CHECK(other.begin(0));
  other.end(0, 5 * kSecond, false);
  CHECK(other.begin(0));
  other.end(0, 5 * kSecond + 1, false);
  CHECK(other.off() == TierGate::Off::kSlow);
}

TEST_CASE("what is asked for is filled, once, in order, and read") {
  Fixture f;
  std::vector<std::string> put;
  f.disk().around = [&](Call call, const std::string& object, const std::function<void()>& go_on) {
    if (call == Call::kPutNew) put.push_back(object);
    go_on();
  };
  for (const size_t i : {3, 1, 2, 1, 3}) f.want(i);
  f.tend();
  CHECK(put ==
        std::vector{segment_path(f.name(3)), segment_path(f.name(1)), segment_path(f.name(2))});
  CHECK(f.disk().memory->content(segment_path(f.name(1))) == f.content_of(f.name(1)));
  CHECK(f.reads(1));
  CHECK(f.reads(1));
  CHECK_FALSE(f.reads(0));
  CHECK(f.looked_again.size() == 3);
  const auto status = f.directory->status();
  CHECK(status.state == State::kOk);
  CHECK(status.segments == 3);
  CHECK(status.bytes == 3 * kCopyBytes);
  CHECK(status.fills == 3);
  CHECK(status.fill_bytes == 3 * kCopyBytes);
  CHECK(status.reads == 2);
  CHECK(status.read_bytes == 2 * kBlockBytes);
  CHECK(status.errors == 0);
  CHECK(f.log.empty());
  // Who finds it there says so too, for somebody may have stopped using it.
  f.fill(1);
  CHECK(f.looked_again.size() == 4);
  CHECK(put.size() == 3);
}

TEST_CASE("the queue is bounded") {
  FillQueue queue;
  for (uint64_t i = 0; i < FillQueue::kMax; ++i) CHECK(queue.add({{i, i}, 1}));
  CHECK_FALSE(queue.add({{1, 0}, 1}));
  queue.done();
  CHECK(queue.add({{1, 0}, 1}));
}

TEST_CASE("no more bytes a second than may be") {
  Fixture f;
  f.options.fill_bytes_per_second = kCopyBytes;
  f.make();
  f.now_ns = 5000 * kSecond;
  for (size_t i = 0; i < 8; ++i) f.want(i);
  f.tend();
  CHECK(f.directory->status().fills == 1);
  f.now_ns += kSecond - 1;
  f.tend();
  CHECK(f.directory->status().fills == 1);
  f.now_ns += 1;
  f.tend();
  CHECK(f.directory->status().fills == 2);
  // What was not used is not saved up.
  f.now_ns += 60 * kSecond;
  f.tend();
  CHECK(f.directory->status().fills == 3);
}

TEST_CASE("a directory without its identity, or with another's, is absent and not written to") {
  Fixture f;
  const ByteVector identity = f.disk().memory->content(kTierIdentityObject);
  auto empty = std::make_shared<MemoryBackend>();
  SUBCASE("an empty mount point") {}
  SUBCASE("of another store") {
    put_new_tier_identity(*empty, random_uuid(), f.options.host.host_id, f.entry.uuid);
  }
  SUBCASE("of another host") {
    put_new_tier_identity(*empty, f.options.identity.uuid, random_uuid(), f.entry.uuid);
  }
  SUBCASE("another one of this tier") {
    put_new_tier_identity(*empty, f.options.identity.uuid, f.options.host.host_id, random_uuid());
  }
  SUBCASE("damaged") {
    ByteVector damaged = identity;
    damaged[30] ^= std::byte{1};
    empty->set_content(kTierIdentityObject, damaged);
  }
  const auto right = f.disk().memory;
  const size_t events = empty->event_count();
  f.disk().memory = empty;
  f.fill(0);
  f.now_ns += 60 * kSecond;
  f.fill(0);
  CHECK((f.state() == State::kAbsent || f.state() == State::kFailing));
  CHECK(empty->event_count() == events);
  CHECK_FALSE(f.reads(0));
  CHECK(f.log.size() == 1);
  const int changes = f.changes;
  f.disk().memory = right;
  f.now_ns += 9 * kSecond;
  f.tend();
  CHECK(f.state() != State::kOk);
  f.now_ns += 2 * kSecond;
  f.fill(0);
  CHECK(f.state() == State::kOk);
  CHECK(f.changes > changes);
  CHECK(f.reads(0));
  CHECK(f.log.size() == 2);
}

TEST_CASE("a missing directory is absent and is used when it comes") {
  Fixture f;
  f.disk().is_missing = true;
  f.fill(0);
  CHECK(f.state() == State::kAbsent);
  CHECK(f.log.size() == 1);
  f.disk().is_missing = false;
  f.now_ns += 10 * kSecond;
  f.fill(0);
  CHECK(f.reads(0));
}

TEST_CASE("a directory that loses its identity is written to no more") {
  Fixture f;
  f.fill(0);
  f.disk().memory->remove(kTierIdentityObject);
  f.fill(1);
  CHECK_FALSE(f.has(1));
  CHECK(f.state() == State::kAbsent);
}

TEST_CASE("what is unmounted is let go, and nothing is written to what is there instead") {
  Fixture f;
  f.fill(0);
  const auto copy = f.directory->open(f.name(0), 2);
  REQUIRE(copy);
  CHECK(read_copy(*copy, f.options.identity.secret));
  const auto disk = f.disk().memory;
  const auto mount_point = std::make_shared<MemoryBackend>();
  f.disk().memory = mount_point;
  const int changes = f.changes;
  f.want(1);
  f.now_ns += TierDirectory::kLookNs;
  f.tend();
  CHECK(f.changes == changes + 1);
  CHECK(f.state() == State::kAbsent);
  CHECK_FALSE(copy->begin());
  CHECK_FALSE(f.directory->open(f.name(0), 2));
  CHECK(mount_point->event_count() == 0);
  CHECK_FALSE(disk->get(segment_path(f.name(1)), kSegmentBytesMax));
  f.disk().memory = disk;
  f.now_ns += 10 * kSecond;
  f.tend();
  CHECK(f.reads(0));
  CHECK_FALSE(copy->begin());
}

TEST_CASE("three errors in a row put a directory off, until it works again") {
  Fixture f;
  f.fill(0);
  const auto copy = f.directory->open(f.name(0), 2);
  REQUIRE(copy);
  const auto& secret = f.options.identity.secret;
  f.disk().memory->fail_reads("segments/", EIO);
  for (int i = 0; i < 2; ++i) CHECK_FALSE(read_copy(*copy, secret));
  f.disk().memory->fail_reads("segments/", 0);
  CHECK(read_copy(*copy, secret));
  f.disk().memory->fail_reads("segments/", EIO);
  for (int i = 0; i < 3; ++i) CHECK_FALSE(read_copy(*copy, secret));
  CHECK_FALSE(copy->begin());
  CHECK(f.state() == State::kFailing);
  CHECK(f.log.empty());
  f.directory->watch();
  CHECK(f.log.size() == 1);
  auto status = f.directory->status();
  CHECK(status.errors == 5);
  CHECK(status.last_error.find(segment_path(f.name(0))) != std::string::npos);
  // It does not take what is written to it either.
  f.break_calls(Call::kPutNew, "", EIO);
  f.now_ns += 9 * kSecond;
  f.tend();
  CHECK(f.state() == State::kFailing);
  f.now_ns += 2 * kSecond;
  f.tend();
  CHECK(f.state() == State::kFailing);
  f.disk().around = {};
  f.disk().memory->fail_reads("segments/", 0);
  f.tend();
  CHECK(f.state() == State::kFailing);
  const int changes = f.changes;
  f.now_ns += 10 * kSecond;
  f.tend();
  CHECK(f.state() == State::kOk);
  CHECK(f.changes == changes + 1);
  CHECK(f.reads(0));
  CHECK(f.disk().memory->list("") == std::vector<std::string>{"segments", kTierIdentityObject});
}

TEST_CASE("that somebody removed a copy is no error of its directory") {
  Fixture f;
  for (size_t i = 0; i < 8; ++i) f.fill(i);
  for (size_t i = 0; i < 8; ++i) f.disk().memory->remove(segment_path(f.name(i)));
  for (size_t i = 0; i < 8; ++i) CHECK_FALSE(f.reads(i));
  CHECK(f.state() == State::kOk);
  CHECK(f.directory->status().errors == 0);
  CHECK(f.directory->status().segments == 0);
  f.fill(0);
  CHECK(f.reads(0));
  // Nor is it where it is found out when it is read.
  const auto copy = f.directory->open(f.name(0), 2);
  REQUIRE(copy);
  f.disk().memory->fail_reads("segments/", ENOENT);
  for (int i = 0; i < 5; ++i) CHECK_FALSE(read_copy(*copy, f.options.identity.secret));
  CHECK(f.state() == State::kOk);
}

TEST_CASE("a directory that hangs holds up what is in it, and nothing that comes later") {
  Fixture f;
  f.fill(0);
  std::mutex mutex;
  std::condition_variable changed;
  int inside = 0;
  bool is_released = false;
  f.disk().around = [&](Call call, const std::string&, const std::function<void()>& go_on) {
    if (call == Call::kRead) {
      std::unique_lock guard(mutex);
      ++inside;
      changed.notify_all();
      changed.wait(guard, [&] { return is_released; });
    }
    go_on();
  };
  f.disk().memory->fail_reads("none", 0);
  const auto around = f.disk().around;
  f.disk().around = {};
  const auto copy = f.directory->open(f.name(0), 2);
  REQUIRE(copy);
  f.disk().around = around;
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      if (read_copy(*copy, f.options.identity.secret)) ++right;
    });
  {
    std::unique_lock guard(mutex);
    changed.wait(guard, [&] { return inside == 4; });
  }
  f.now_ns += TierGate::kStallNs + 1;
  // Else this test would hang too.
  REQUIRE_FALSE(copy->begin());
  CHECK_FALSE(f.directory->open(f.name(0), 2));
  f.fill(1);
  CHECK_FALSE(f.has(1));
  CHECK(f.state() == State::kOk);
  f.now_ns += TierGate::kHangNs;
  f.directory->watch();
  CHECK(f.state() == State::kFailing);
  CHECK(f.directory->status().last_error.find("answered") != std::string::npos);
  CHECK(f.log.size() == 1);
  {
    const std::lock_guard guard(mutex);
    is_released = true;
  }
  changed.notify_all();
  for (std::thread& thread : threads) thread.join();
  CHECK(right == 4);
  CHECK_FALSE(copy->begin());
  f.disk().around = {};
  f.now_ns += 10 * kSecond;
  f.tend();
  CHECK(f.reads(0));
}

TEST_CASE("a directory that hangs while it is opened is said to fail, until it answers") {
  Fixture f;
  Barrier barrier;
  f.options.open_directory = [&](const std::string& path) {
    barrier.hold();
    return f.open(path);
  };
  f.make();
  std::thread keeper([&] { f.directory->tend(); });
  barrier.await(1);
  f.directory->watch();
  CHECK(f.state() == State::kAbsent);
  CHECK(f.log.empty());
  f.now_ns += TierGate::kHangNs + 1;
  for (int i = 0; i < 3; ++i) f.directory->watch();
  CHECK(f.state() == State::kFailing);
  CHECK(f.directory->status().last_error.find("has not answered for 5 s") != std::string::npos);
  CHECK(f.directory->status().errors == 1);
  CHECK(f.log.size() == 1);
  barrier.open();
  keeper.join();
  CHECK(f.state() == State::kOk);
  CHECK(f.log.size() == 2);
}

TEST_CASE("a read that takes long puts a directory off") {
  Fixture f;
  f.fill(0);
  const auto copy = f.directory->open(f.name(0), 2);
  REQUIRE(copy);
  CHECK(copy->begin());
  f.now_ns += TierGate::kHangNs + 1;
  copy->end(SegmentCopy::Outcome::kRead, kBlockBytes, {});
  CHECK(f.state() == State::kFailing);
}

TEST_CASE("objects of readers are closed by the keeper") {
  Fixture f;
  f.fill(0);
  f.directory->set_kept();
  auto copy = f.directory->open(f.name(0), 2);
  REQUIRE(copy);
  f.disk().memory->remove(segment_path(f.name(0)));
  const Object* object = &copy->object();
  copy.reset();
  // It is there still, so it can be read.
  ByteVector block(kBlockBytes);
  const_cast<Object*>(object)->read(0, block);
  CHECK(block == block_of(1));
  f.tend();
}

TEST_CASE("a copy with any byte changed is read by nobody, and removed") {
  Fixture f(1);
  f.tend();
  const ByteVector sound = f.content_of(f.name(0));
  uint64_t damaged = 0;
  const auto check = [&](const ByteVector& content) {
    f.put_copy("/ssd", f.name(0), content);
    if (f.reads(0)) {  // what read_copy() does not look at
      CHECK_FALSE(f.directory->read_whole(f.name(0)));
    } else {
      f.tend();
    }
    CHECK_FALSE(f.has(0));
    CHECK(f.directory->status().damaged == ++damaged);
  };
  // Of the blocks a part is enough.
  for (size_t at = 0; at < sound.size(); at += at < 2 * kBlockBytes ? 61 : 1) {
    ByteVector content = sound;
    content[at] ^= std::byte{1};
    check(content);
  }
  for (const int more : {-4096, -1, 1, 4112}) {
    ByteVector content = sound;
    content.resize(sound.size() + more);
    check(content);
  }
  check({});
  CHECK(f.state() == State::kOk);
  f.fill(0);
  CHECK(f.reads(0));
  CHECK(f.directory->read_whole(f.name(0)) == sound);
}

TEST_CASE(
    "whatever a copy says of itself, with a checksum that is right, it serves nothing wrong") {
  const uint64_t seed = std::random_device{}();
  MESSAGE("seed ", seed);
  std::mt19937_64 random(seed);
  Fixture f(2);
  f.tend();
  const ByteVector sound = f.content_of(f.name(0)), other = f.content_of(f.name(1));
  const auto bytes_at = [](ByteVector& content, uint64_t from_end, size_t count) {
    return MutableBytes(content).subspan(content.size() - from_end, count);
  };
  for (int round = 0; round < 4000; ++round) {
    ByteVector content = random() % 8 == 0 ? other : sound;
    // Other lengths, also such as a segment of more or fewer blocks has; then parts of it anew.
    if (random() % 3 == 0) content.resize(segment_object_bytes(1 + random() % 4));
    if (random() % 8 == 0) content.resize(random() % (2 * sound.size()));
    const bool has_trailer = content.size() >= sizeof(SegmentTrailer);
    for (uint64_t changes = random() % 4; changes > 0 && !content.empty(); --changes) {
      const uint64_t end =
          random() % 4 == 0 ? content.size() : std::min<size_t>(content.size(), 80);
      content[content.size() - 1 - random() % end] = static_cast<std::byte>(random());
    }
    if (has_trailer && random() % 4 != 0) {
      SegmentTrailer trailer;
      const MutableBytes at = bytes_at(content, sizeof trailer, sizeof trailer);
      std::memcpy(&trailer, at.data(), sizeof trailer);
      if (random() % 2 == 0) trailer.magic = kSegmentMagic;
      if (random() % 2 == 0) trailer.format = static_cast<uint32_t>(random() % 3);
      if (random() % 2 == 0)
        trailer.block_count = static_cast<uint32_t>(random() >> (random() % 64));
      if (random() % 2 == 0) trailer.table_hash = f.name(random() % 2);
      trailer.checksum = checksum(bytes_of(trailer).first(offsetof(SegmentTrailer, checksum)));
      std::memcpy(at.data(), &trailer, sizeof trailer);
    }
    f.put_copy("/ssd", f.name(0), content);
    if (const auto copy = f.directory->open(f.name(0), 0)) {
      CHECK(copy->table().size() == 2);
      CHECK(copy->table() == std::vector<Hash128>{hash_of(block_of(1)), hash_of(block_of(2))});
      if (read_copy(*copy, f.options.identity.secret))
        CHECK(std::ranges::equal(Bytes(content).first(kBlockBytes), block_of(1)));
    }
    if (const auto whole = f.directory->read_whole(f.name(0))) CHECK(whole->size() == sound.size());
    f.tend();
  }
  CHECK(f.directory->status().damaged > 1000);
}

TEST_CASE("a damaged copy that cannot be removed is not read again") {
  for (const size_t from_end : {size_t{1}, kCopyBytes}) {
    Fixture f;
    ByteVector content = f.content_of(f.name(0));
    content[content.size() - from_end] ^= std::byte{1};
    f.put_copy("/ssd", f.name(0), content);
    f.tend();
    f.break_calls(Call::kRemove, "", EROFS);
    CHECK_FALSE(f.reads(0));
    for (int i = 0; i < 3; ++i) {
      CHECK_FALSE(f.directory->open(f.name(0), 2));
      f.tend();
    }
    CHECK(f.directory->status().damaged == 1);
  }
}

TEST_CASE("who is wrong about the size of a segment does not take its copy away") {
  Fixture f;
  f.fill(0);
  CHECK_FALSE(f.directory->open(f.name(0), 3));
  f.tend();
  CHECK(f.reads(0));
}

TEST_CASE("nothing that is damaged at the origin is copied, but for space that was given back") {
  Fixture f;
  const auto damage = [&](size_t segment, uint64_t offset, const ByteVector& bytes) {
    ByteVector content = f.content_of(f.name(segment));
    std::ranges::copy(bytes, content.begin() + static_cast<ptrdiff_t>(offset));
    f.store.set_content(segment_path(f.name(segment)), content);
  };
  damage(0, 4096, ByteVector(1, std::byte{99}));
  damage(1, 4096, ByteVector(4096));
  damage(2, 2 * 4096 + 3, ByteVector(1, std::byte{99}));
  f.store.remove(segment_path(f.name(3)));
  for (size_t i = 0; i < 5; ++i) f.fill(i);
  CHECK_FALSE(f.has(0));
  CHECK(f.has(1));
  CHECK_FALSE(f.has(2));
  CHECK_FALSE(f.has(3));
  CHECK(f.has(4));
  CHECK(f.log.size() == 3);
  CHECK(f.state() == State::kOk);
  CHECK(f.directory->status().errors == 0);
}

TEST_CASE("a full directory gives up what was not read for long, and nothing else") {
  Fixture f(12);
  f.table.directories[0].weight_bytes = 8 * kCopyBytes;
  f.directory->set_table(f.shared_table());
  for (size_t i = 0; i < 8; ++i) {
    f.fill(i);
    f.now_ns += kSecond;
  }
  CHECK(f.directory->status().segments == 8);
  uint64_t origin_reads = 0;
  const auto fill_counted = [&](size_t i) {
    return f.directory->fill({f.name(i), 2}, [&] {
      ++origin_reads;
      return f.content_of(f.name(i));
    });
  };
  CHECK(fill_counted(8) == TierDirectory::Fill::kNoRoom);
  CHECK(origin_reads == 0);
  CHECK(f.state() == State::kFull);
  CHECK(f.reads(0));  // now number 1 is the one read least recently
  f.now_ns += f.options.keep_ns - 8 * kSecond;
  CHECK(fill_counted(8) == TierDirectory::Fill::kNoRoom);
  f.now_ns += kSecond;
  CHECK(fill_counted(8) == TierDirectory::Fill::kFilled);
  CHECK(f.state() == State::kOk);
  CHECK_FALSE(f.has(1));
  CHECK(f.has(0));
  CHECK(f.has(2));
  CHECK(fill_counted(9) == TierDirectory::Fill::kNoRoom);
  f.now_ns += f.options.keep_ns;
  for (const size_t i : {9, 10, 11}) CHECK(fill_counted(i) == TierDirectory::Fill::kFilled);
  CHECK(f.directory->status().bytes == 8 * kCopyBytes);
  // A directory that is opened again knows nothing of this: all count as read just now.
  f.make();
  f.table.directories[0].weight_bytes = 8 * kCopyBytes;
  f.directory->set_table(f.shared_table());
  f.tend();
  CHECK(f.directory->status().segments == 8);
  CHECK(fill_counted(1) == TierDirectory::Fill::kNoRoom);
}

TEST_CASE("a full directory asks the origin for nothing, and says that it is full") {
  Fixture f(12);
  f.table.directories[0].weight_bytes = 2 * kCopyBytes;
  f.directory->set_table(f.shared_table());
  for (size_t i = 0; i < 12; ++i) f.want(i);
  f.tend();
  CHECK(f.directory->status().fills == 2);
  CHECK(f.state() == State::kFull);
  // For a while it does not even look.
  f.table.directories[0].weight_bytes = 4 * kCopyBytes;
  f.directory->set_table(f.shared_table());
  f.fill(7);
  CHECK(f.directory->status().fills == 2);
  f.now_ns += 10 * kSecond;
  f.fill(7);
  CHECK(f.directory->status().fills == 3);
}

TEST_CASE("what other processes have put there takes room, before long") {
  Fixture f(40);
  f.table.directories[0].weight_bytes = 20 * kCopyBytes;
  f.directory->set_table(f.shared_table());
  f.fill(0);
  for (size_t i = 1; i < 19; ++i) f.put_copy("/ssd", f.name(i), f.content_of(f.name(i)));
  f.now_ns += TierDirectory::kStockNs;
  for (size_t i = 19; i < 30; ++i) f.fill(i);
  CHECK(f.has(19));
  CHECK_FALSE(f.has(20));
  CHECK(f.directory->status().bytes == 20 * kCopyBytes);
  // And so it is for who has just come, and only warms.
  f.make();
  CHECK(f.directory->try_to_open());
  CHECK(f.directory->fill({f.name(20), 2}, [&] { return f.content_of(f.name(20)); }) ==
        TierDirectory::Fill::kNoRoom);
}

TEST_CASE("a part of the file system stays free") {
  Fixture f(40);
  f.disk().memory->set_capacity_bytes(20 * 16384);
  for (size_t i = 0; i < 40; ++i) {
    f.fill(i);
    f.now_ns += 10 * kSecond;
  }
  CHECK(f.state() == State::kFull);
  const auto space = *f.disk().memory->space();
  CHECK(space.free_bytes >= space.total_bytes / 20);
  CHECK(space.free_bytes < space.total_bytes / 20 + 2 * 16384);
  CHECK(f.directory->status().errors == 0);
}

TEST_CASE("a directory of kind local keeps all it has") {
  Fixture f(12, TierEntry::Kind::kLocal);
  f.table.directories[0].weight_bytes = 4 * kCopyBytes;
  f.directory->set_table(f.shared_table());
  for (int i = 0; i < 20; ++i) {
    f.tend();
    f.now_ns += 10 * kSecond;
  }
  CHECK(f.directory->status().segments == 4);
  f.now_ns += 10 * f.options.keep_ns;
  f.tend();
  CHECK(f.directory->status().fills == 4);
  CHECK(f.state() == State::kFull);
}

TEST_CASE("a directory of kind local gets all segments of all templates, asked for or not") {
  Fixture f(12, TierEntry::Kind::kLocal);
  f.tend();
  CHECK(f.directory->status().segments == 12);
  make_template(f.store, "b", {100, 101, 102}, 3 * kBlockBytes, 2);
  f.now_ns += f.options.sweep_ns;
  f.tend();
  CHECK(f.directory->status().segments == 14);
}

TEST_CASE("a directory of kind local gets a new template soon, asked for or not") {
  Fixture f(3, TierEntry::Kind::kLocal);
  f.tend();
  CHECK(f.directory->status().segments == 3);
  make_template(f.store, "b", {101, 102, 103, 104}, 4 * kBlockBytes, 2);
  f.now_ns += TierDirectory::kRetryNs;
  f.tend();
  CHECK(f.directory->status().segments == 5);
  remove_template(f.store, "a", [] { return std::vector<std::string>(); });
  f.now_ns += TierDirectory::kRetryNs;
  f.tend();
  CHECK(f.directory->status().segments == 2);
}

TEST_CASE("no space and read-only are no failures, and are tried again") {
  for (const auto& [code, state] : {std::pair(ENOSPC, State::kFull), {EROFS, State::kReadOnly}}) {
    Fixture f;
    f.fill(0);
    f.break_calls(Call::kPutNew, "segments/", code);
    for (size_t i = 1; i < 6; ++i) {
      f.fill(i);
      f.now_ns += 10 * kSecond;
    }
    CHECK(f.state() == state);
    CHECK(f.reads(0));
    CHECK(f.directory->status().errors == 0);
    f.disk().around = {};
    f.fill(1);
    CHECK(f.state() == State::kOk);
    CHECK(f.reads(1));
  }
}

TEST_CASE("a sweep removes what nobody names any more and what is out of place") {
  Fixture f;
  for (size_t i = 0; i < 8; ++i) f.fill(i);
  make_template(f.store, "b", {100, 101}, 2 * kBlockBytes, 2);
  const Hash128 other = load_manifest(f.store, "b")->segments[0].name;
  f.put_copy("/ssd", other, f.content_of(other));
  CHECK(f.directory->sweep() == 0);
  CHECK(f.is_copied("/ssd", other));
  f.store.remove(manifest_path("b"));
  f.now_ns += f.options.sweep_ns;
  f.tend();
  CHECK_FALSE(f.is_copied("/ssd", other));
  CHECK(f.directory->status().segments == 8);
  // Another directory takes half of the space; until copies have moved they stay.
  f.add_directory("/other");
  f.directory->set_table(f.shared_table());
  CHECK(f.directory->sweep() == 0);
  const uint64_t out_of_place = f.directory->status().bytes_out_of_place / kCopyBytes;
  CHECK(out_of_place > 0);
  f.table.finish_move();
  f.directory->set_table(f.shared_table());
  CHECK(f.directory->sweep() == out_of_place);
  CHECK(f.directory->status().bytes_out_of_place == 0);
  for (size_t i = 0; i < 8; ++i)
    CHECK(f.has(i) == (*f.table.placement.at(f.name(i).high) == f.entry.uuid));
}

TEST_CASE("a sweep that does not know what is needed removes nothing, and says so once") {
  Fixture f;
  f.fill(0);
  f.put_copy("/ssd", Hash128{1, 1}, f.content_of(f.name(0)));
  f.store.set_content(manifest_path("broken"), ByteVector(500));
  for (int i = 0; i < 3; ++i) {
    f.now_ns += f.options.sweep_ns;
    f.tend();
  }
  CHECK(f.is_copied("/ssd", Hash128{1, 1}));
  CHECK(f.log.size() == 1);
  f.store.remove(manifest_path("broken"));
  f.now_ns += f.options.sweep_ns;
  f.tend();
  CHECK_FALSE(f.is_copied("/ssd", Hash128{1, 1}));
}

// An import is done in steps between those of the sweep: its journal names a segment before there
// is a copy, and goes when the manifest is there.
TEST_CASE("a sweep never takes a copy whose template is being imported") {
  const ByteVector content = [] {
    MemoryBackend other;
    make_store(other);
    make_template(other, "b", {100, 101}, 2 * kBlockBytes, 2);
    return other.content(segment_path(list_segments(other)[0]));
  }();
  const int steps = 4;
  for (int first = 0; first < 12; ++first) {
    for (int gap = 0; gap < 6; ++gap) {
      Fixture f;
      f.tend();
      make_template(f.store, "b", {100, 101}, 2 * kBlockBytes, 2);
      const Hash128 name = load_manifest(f.store, "b")->segments[0].name;
      const ByteVector manifest = f.store.content(manifest_path("b"));
      f.store.remove(manifest_path("b"));
      std::unique_ptr<ImportJournal> journal;
      int done = 0;
      const auto import_step = [&] {
        switch (done++) {
          case 0:
            journal = std::make_unique<ImportJournal>(f.store, "b", 2 * kBlockBytes);
            journal->add(name);
            return journal->commit();
          case 1:
            return f.put_copy("/ssd", name, content);
          case 2:
            f.store.put_new(manifest_path("b"), manifest);
            return;
          case 3:
            return journal->remove();
        }
      };
      int call = 0;
      ForwardingBackend watched(f.store);
      const auto between = [&](Call, const std::string&, const std::function<void()>& go_on) {
        for (; done < steps && call == first + done * gap;) import_step();
        ++call;
        go_on();
      };
      watched.around = between;
      f.disk().around = between;
      f.options.store = &watched;
      f.make();
      f.directory->try_to_open();
      f.directory->sweep();
      while (done < steps) import_step();
      CHECK_MESSAGE(f.is_copied("/ssd", name), first << " " << gap);
    }
  }
}

TEST_CASE("a directory that left the table is used no more") {
  Fixture f;
  f.fill(0);
  const auto copy = f.directory->open(f.name(0), 2);
  REQUIRE(copy);
  f.directory->close();
  CHECK_FALSE(copy->begin());
  CHECK_FALSE(f.reads(0));
  f.now_ns += 60 * kSecond;
  f.fill(1);
  CHECK_FALSE(f.has(1));
  CHECK(f.log.empty());
}

}  // namespace tplstore::tier_directory_test
