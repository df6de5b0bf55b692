#include "tier/tier.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "backend/open_backend.h"
#include "barrier.h"
#include "base/host.h"
#include "control/operations.h"
#include "import_testing.h"
#include "store/store.h"
#include "template/template_catalog.h"
#include "template/template_image.h"
#include "temporary_directory.h"
#include "tier_testing.h"

namespace tplstore::tier_test {
using namespace tplstore::testing;
using State = TierDirectoryStatus::State;
using Call = ForwardingBackend::Call;

namespace {

constexpr uint64_t kCopyBytes = segment_object_bytes(2);
const Tier::Progress kNoProgress = [](uint64_t, uint64_t) {};

struct Fixture : TierFixture {
  ForwardingBackend origin{store};
  std::atomic<uint64_t> origin_reads{0};
  std::unique_ptr<Tier> tier;
  std::unique_ptr<BlockSource> blocks;
  std::shared_ptr<TemplateImage> image;
  std::function<void()> on_filled;

  explicit Fixture(const std::vector<std::string>& paths, uint64_t segment_count = 40)
      : TierFixture(segment_count) {
    store.set_recording(false);
    options.origin = &origin;
    origin.on_read = [this](const std::string& name) {
      if (name.starts_with("segments/")) ++origin_reads;
    };
    for (const std::string& path : paths) add_directory(path);
    table.finish_move();
    make();
  }
  ~Fixture() {
    image.reset();
    blocks.reset();
  }
  void make(const std::filesystem::path& state = {}) {
    image.reset();
    blocks.reset();
    options.look_again = [this](const Hash128& name) {
      blocks->look_again(name);
      if (on_filled) on_filled();
    };
    tier = std::make_unique<Tier>(options, state);
    blocks = std::make_unique<BlockSource>(origin);
    blocks->set_copies(*tier, options.identity.secret);
    image = TemplateImage::open(store, *blocks, "a");
    if (state.empty()) tier->set_table(table);
    tier->open_directories();
  }
  // Reads all of the template, and whether that is right.
  bool reads_right() {
    ByteVector disk(image->size_bytes());
    bool is_right = true;
    for (uint64_t at = 0; at < disk.size(); at += 2 * kBlockBytes)
      image->read(at, MutableBytes(disk).subspan(at, 2 * kBlockBytes));
    for (uint64_t block = 0; block < disk.size() / kBlockBytes; ++block)
      is_right &= std::ranges::equal(Bytes(disk).subspan(block * kBlockBytes, kBlockBytes),
                                     block_of(block + 1));
    return is_right;
  }
  std::vector<WantedSegment> wanted() const {
    std::vector<WantedSegment> all;
    for (const ManifestSegment& segment : segments)
      all.push_back({segment.name, segment.block_count});
    return all;
  }
  uint64_t copies() const {
    uint64_t sum = 0;
    for (const auto& directory : tier->status().directories) sum += directory.segments;
    return sum;
  }
  uint64_t bytes_out_of_place() const {
    uint64_t sum = 0;
    for (const auto& directory : tier->status().directories) sum += directory.bytes_out_of_place;
    return sum;
  }
};

}  // namespace

TEST_CASE("what was read at the origin is read from the directory of its place the next time") {
  Fixture f({"/a", "/b", "/c"});
  CHECK(f.reads_right());
  CHECK(f.tier->status().origin_reads == 40);
  CHECK(f.tier->status().origin_read_bytes == 80 * kBlockBytes);
  f.tier->tend();
  CHECK(f.copies() == 40);
  f.origin_reads = 0;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 0);
  const TierStatus status = f.tier->status();
  CHECK(status.has_table);
  CHECK(status.origin_reads == 40);
  uint64_t reads = 0, bytes = 0;
  double share = 0;
  for (const auto& directory : status.directories) {
    CHECK(directory.state == State::kOk);
    CHECK(directory.segments > 0);
    CHECK(directory.bytes_out_of_place == 0);
    reads += directory.reads;
    bytes += directory.read_bytes;
    share += directory.share;
  }
  CHECK(reads == 40);
  CHECK(bytes == 80 * kBlockBytes);
  CHECK(share == doctest::Approx(1));
  for (const ManifestSegment& segment : f.segments)
    CHECK(f.is_copied(f.table.find(*f.table.placement.at(segment.name.high))->path, segment.name));
}

TEST_CASE("without a table all is read at the origin") {
  Fixture f({});
  CHECK(f.reads_right());
  f.tier->set_table({});
  f.tier->tend();
  CHECK(f.reads_right());
  CHECK_FALSE(f.tier->status().has_table);
  CHECK(f.origin_reads == 80);
}

TEST_CASE("where nothing may be filled nothing is, until it is warmed") {
  Fixture f({"/a"});
  f.options.fill_bytes_per_second = 0;
  f.make();
  CHECK(f.reads_right());
  f.tier->tend();
  CHECK(f.copies() == 0);
  const auto result = f.tier->warm(f.wanted(), kNoProgress);
  CHECK(result.filled_segments == 40);
  CHECK(result.filled_bytes == 40 * kCopyBytes);
  CHECK(result.missing.empty());
  CHECK(f.tier->warm(f.wanted(), kNoProgress).filled_segments == 0);
  f.origin_reads = 0;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 0);
}

TEST_CASE("warming names what is not in its place, and why") {
  Fixture f({"/a", "/b"});
  f.disks["/b"].around = [](Call call, const std::string& name,
                            const std::function<void()>& go_on) {
    if (call == Call::kPutNew) fail_errno(ENOSPC, name, "injected");
    go_on();
  };
  std::vector<uint64_t> done;
  const auto result = f.tier->warm(f.wanted(), [&](uint64_t bytes, uint64_t total) {
    CHECK(total == 40 * kCopyBytes);
    done.push_back(bytes);
  });
  CHECK(done.back() == 40 * kCopyBytes);
  CHECK(std::ranges::is_sorted(done));
  CHECK(result.filled_segments + result.missing.size() == 40);
  CHECK(!result.missing.empty());
  for (const auto& missing : result.missing) {
    CHECK(f.table.find(*f.table.placement.at(missing.segment.high))->path == "/b");
    CHECK(missing.why.find("/b: there is no room") == 0);
  }
  f.store.remove(segment_path(f.segments[0].name));
  f.disks["/b"].around = {};
  f.disks["/a"].memory->remove(segment_path(f.segments[0].name));
  const auto again = f.tier->warm(f.wanted(), kNoProgress);
  CHECK(again.missing.size() == 1);
  CHECK(again.missing[0].segment == f.segments[0].name);
}

TEST_CASE("a full copy of this host's serves when the origin is gone") {
  Fixture f({});
  f.add_directory("/local", uint64_t{1} << 30, TierEntry::Kind::kLocal);
  f.make();
  f.tier->tend();
  CHECK(f.copies() == 40);
  f.make();
  f.origin_reads = 0;
  for (const ManifestSegment& segment : f.segments) f.store.remove(segment_path(segment.name));
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 0);
  CHECK(f.tier->status().directories[0].share == 1);
}

TEST_CASE("copies are moved to where they belong, and read meanwhile") {
  Fixture f({"/a", "/b"});
  f.tier->warm(f.wanted(), kNoProgress);
  f.add_directory("/c");
  f.tier->set_table(f.table);
  f.tier->open_directories();
  CHECK(f.tier->status().is_moving);
  const uint64_t bytes = f.bytes_out_of_place();
  CHECK(bytes > 0);
  const auto counted = f.tier->move_copies(true, kNoProgress);
  CHECK(counted.bytes == bytes);
  CHECK(counted.segments == bytes / kCopyBytes);
  CHECK(f.bytes_out_of_place() == bytes);
  f.origin_reads = 0;
  // Interrupted at each step, and continued.
  uint64_t moved = 0;
  for (int steps = 1;; ++steps) {
    int step = 0;
    try {
      moved += f.tier
                   ->move_copies(false,
                                 [&](uint64_t, uint64_t) {
                                   CHECK(f.reads_right());
                                   if (++step > 2) throw Error(EINTR, "test", "interrupted");
                                 })
                   .moved_segments;
      break;
    } catch (const Error& error) {
      CHECK(error.code() == EINTR);
      moved += 2;
    }
  }
  CHECK(f.origin_reads == 0);
  CHECK(f.bytes_out_of_place() == 0);
  CHECK(f.copies() == 40);
  f.table.finish_move();
  f.tier->set_table(f.table);
  CHECK(f.tier->sweep() == 0);
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 0);
}

TEST_CASE("what cannot be moved stays, what is damaged is made anew, what has no room goes") {
  Fixture f({"/a"});
  f.tier->warm(f.wanted(), kNoProgress);
  f.add_directory("/b");
  f.tier->set_table(f.table);
  f.disks["/b"].is_missing = true;
  f.tier->open_directories();
  const auto stuck = f.tier->move_copies(false, kNoProgress);
  CHECK(stuck.moved_segments == 0);
  CHECK(stuck.problems.size() == 1);
  CHECK(f.copies() == 40);
  f.disks["/b"].is_missing = false;
  f.now_ns += 10 * kSecond;
  f.tier->open_directories();
  std::vector<Hash128> out_of_place;
  for (const ManifestSegment& segment : f.segments)
    if (*f.table.placement.at(segment.name.high) == f.table.directories[1].uuid)
      out_of_place.push_back(segment.name);
  REQUIRE(out_of_place.size() > 3);
  ByteVector damaged = f.content_of(out_of_place[0]);
  damaged[0] ^= std::byte{1};
  f.put_copy("/a", out_of_place[0], damaged);
  f.table.directories[1].weight_bytes = 2 * segment_object_bytes(kSegmentBlocksMax);
  TierTable smaller = f.table;
  f.tier->set_table(smaller);
  const auto result = f.tier->move_copies(false, kNoProgress);
  CHECK(result.problems.empty());
  CHECK(result.moved_segments + result.dropped_segments == out_of_place.size());
  CHECK(f.is_copied("/b", out_of_place[0]));
  CHECK(f.disks["/b"].memory->content(segment_path(out_of_place[0])) ==
        f.content_of(out_of_place[0]));
  for (const Hash128& name : out_of_place) CHECK_FALSE(f.is_copied("/a", name));
  CHECK(f.reads_right());
}

TEST_CASE("a tier without directories gives up what leaving ones have") {
  Fixture f({"/a"});
  f.tier->warm(f.wanted(), kNoProgress);
  f.table.remove(f.table.directories[0].uuid);
  f.tier->set_table(f.table);
  CHECK(f.tier->status().directories[0].state == State::kLeaving);
  f.origin_reads = 0;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 0);
  CHECK(f.tier->move_copies(false, kNoProgress).dropped_segments == 40);
  CHECK(f.reads_right());
}

TEST_CASE("copies are checked, and a sound one is found wherever it is") {
  Fixture f({"/a", "/b"});
  f.tier->warm(f.wanted(), kNoProgress);
  const Hash128 name = f.segments[3].name;
  CHECK(f.tier->sound_copy(name) == f.content_of(name));
  const std::string path = f.table.find(*f.table.placement.at(name.high))->path;
  ByteVector damaged = f.content_of(name);
  damaged[5000] ^= std::byte{1};
  f.put_copy(path, name, damaged);
  const auto result = f.tier->check(kNoProgress);
  CHECK(result.segments == 40);
  CHECK(result.damaged == 1);
  CHECK_FALSE(f.is_copied(path, name));
  CHECK_FALSE(f.tier->sound_copy(name));
  CHECK(f.reads_right());
}

TEST_CASE("a directory that leaves the table is read no more, one that comes is") {
  Fixture f({"/a", "/b"});
  f.tier->warm(f.wanted(), kNoProgress);
  CHECK(f.reads_right());
  const TierTable both = f.table;
  const uint64_t generation = f.tier->generation();
  f.tier->set_table({});
  CHECK(f.tier->generation() != generation);
  f.origin_reads = 0;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 40);
  f.tier->set_table(both);
  f.tier->open_directories();
  f.origin_reads = 0;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 0);
}

TEST_CASE("damage in copies is read over, and mended, while the guest reads") {
  Fixture f({"/a", "/b"});
  f.tier->warm(f.wanted(), kNoProgress);
  CHECK(f.reads_right());
  std::mt19937_64 random(1);
  for (const ManifestSegment& segment : f.segments) {
    const std::string path = f.table.find(*f.table.placement.at(segment.name.high))->path;
    ByteVector content = f.content_of(segment.name);
    content[random() % (2 * kBlockBytes)] ^= std::byte{1};
    f.put_copy(path, segment.name, content);
  }
  CHECK(f.reads_right());
  uint64_t damaged = 0;
  for (const auto& directory : f.tier->status().directories) {
    damaged += directory.damaged;
    CHECK(directory.state == State::kOk);
  }
  CHECK(damaged == 40);
  f.tier->tend();
  f.now_ns += kSecond;
  f.tier->tend();
  f.origin_reads = 0;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 0);
}

TEST_CASE("a full tier does not churn") {
  // 200 templates of one segment each, started in turn for an hour; 150 have room.
  constexpr uint64_t kTemplates = 200, kFit = 150;
  Fixture f({"/a", "/b", "/c", "/d"}, kTemplates);
  uint64_t room = 0;
  for (TierEntry& entry : f.table.directories) {
    entry.weight_bytes = kFit / 4 * kCopyBytes;
    room += entry.weight_bytes;
  }
  f.tier->set_table(f.table);
  f.tier->open_directories();
  for (int second = 0; second < 3600; second += 3) {
    const uint64_t i = static_cast<uint64_t>(second / 3) % kTemplates;
    ByteVector block(kBlockBytes);
    f.image->read(2 * i * kBlockBytes, block);
    f.tier->tend();
    f.now_ns += 3 * kSecond;
  }
  uint64_t written = 0;
  for (const auto& directory : f.tier->status().directories) written += directory.fill_bytes;
  CHECK(written > room / 2);
  CHECK(written <= room + room / 5);
}

TEST_CASE("an hour of starts: fills keep to their rate, and what was read lately stays") {
  // 100 have room. Ten are started all the time; 140 in turn, and other 140 from half-time on.
  constexpr uint64_t kAlways = 10, kOthers = 140, kFit = 100;
  constexpr int64_t kHour = 3600 * kSecond, kKeep = 600 * kSecond;
  Fixture f({"/a", "/b"}, kAlways + 2 * kOthers);
  for (TierEntry& entry : f.table.directories) entry.weight_bytes = kFit / 2 * kCopyBytes;
  f.options.keep_ns = kKeep;
  f.options.fill_bytes_per_second = kCopyBytes;
  f.make();
  std::map<Hash128, int64_t> read_ns;
  uint64_t written = 0, given_up = 0;
  std::set<Hash128> before;
  const int64_t start_ns = f.now_ns;
  for (uint64_t step = 0; f.now_ns < start_ns + kHour; ++step) {
    const uint64_t first_other = kAlways + (f.now_ns < start_ns + kHour / 2 ? 0 : kOthers);
    for (const uint64_t i : {step % kAlways, first_other + step * 3 % kOthers}) {
      ByteVector block(kBlockBytes);
      f.image->read(2 * i * kBlockBytes, block);
      CHECK(block == block_of(2 * i + 1));
      read_ns[f.segments[i].name] = f.now_ns;
    }
    f.tier->tend();
    std::set<Hash128> there;
    for (const std::string path : {"/a", "/b"})
      for (const Hash128& name : list_segments(*f.disks[path].memory)) there.insert(name);
    for (const Hash128& name : before) {
      if (there.contains(name)) continue;
      ++given_up;
      CHECK(f.now_ns - read_ns[name] >= kKeep);
    }
    before = there;
    written = f.tier->stats().fill_bytes;
    CHECK(written <= (static_cast<uint64_t>((f.now_ns - start_ns) / kSecond) + 2) * kCopyBytes);
    CHECK(f.tier->stats().bytes <= kFit * kCopyBytes);
    f.now_ns += 2 * kSecond;
  }
  MESSAGE((written / kCopyBytes) << " copies made, " << given_up << " given up");
  // What is started all the time is not given up; of the others each comes once.
  for (uint64_t i = 0; i < kAlways; ++i) CHECK(before.contains(f.segments[i].name));
  CHECK(given_up > kFit / 2);
  CHECK(written <= 2 * kFit * kCopyBytes);
}

TEST_CASE("what was made to collide is told apart, with copies of the one left in the tier") {
  const auto [first, second] = colliding_blocks(kPublicSecret);
  for (const bool is_reversed : {false, true}) {
    CAPTURE(is_reversed);
    Fixture f({"/a", "/b"});
    const auto read = [&](const std::string& name) {
      return read_whole(*TemplateImage::open(f.store, *f.blocks, name));
    };
    const auto warm = [&](const std::string& name) {
      const Manifest manifest = *load_manifest(f.store, name);
      for (const ManifestSegment& segment : manifest.segments)
        CHECK(f.tier->warm({{segment.name, segment.block_count}}, kNoProgress).missing.empty());
    };
    const ByteVector& one = is_reversed ? second : first;
    const ByteVector& other = is_reversed ? first : second;
    import_disk(f.store, "one", one);
    warm("one");
    CHECK(read("one") == one);
    remove_template(f.store, "one", [] { return std::vector<std::string>(); });
    gc(f.store);
    const auto copies = f.copies();
    import_disk(f.store, "other", other);
    CHECK(read("other") == other);
    warm("other");
    f.origin_reads = 0;
    CHECK(read("other") == other);
    CHECK(f.origin_reads == 0);
    CHECK(f.copies() == copies + 1);
    // And back, with both copies there.
    import_disk(f.store, "one", one);
    CHECK(read("one") == one);
    CHECK(read("other") == other);
    CHECK(f.tier->check(kNoProgress).damaged == 0);
    f.tier->sweep();
    CHECK(read("one") == one);
  }
}

TEST_CASE("copies that come when segments are open already are used") {
  Fixture f({"/a"});
  f.image.reset();
  f.blocks = std::make_unique<BlockSource>(f.origin);
  f.image = TemplateImage::open(f.store, *f.blocks, "a");
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 40);
  f.tier->warm(f.wanted(), kNoProgress);
  f.blocks->set_copies(*f.tier, f.options.identity.secret);
  f.origin_reads = 0;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 0);
}

// --- the file

TEST_CASE("the table's file is taken over when it changes, and what cannot be used is said once") {
  const TemporaryDirectory state;
  Fixture f({"/a", "/b"});
  const auto save = [&](const TierTable& table) {
    TierTableChange change(state.path(), f.options.identity.uuid, f.options.host);
    change.table.directories = table.directories;
    change.table.placement = table.placement;
    change.table.before = table.before;
    change.save();
  };
  f.make(state.path());
  CHECK_FALSE(f.tier->status().has_table);
  save(f.table);
  f.tier->look_at_table();
  CHECK(f.tier->status().directories.size() == 2);
  f.tier->open_directories();
  f.tier->warm(f.wanted(), kNoProgress);
  const uint64_t generation = f.tier->generation();
  f.tier->look_at_table();
  CHECK(f.tier->generation() == generation);
  std::ofstream(TierTable::file_in(state.path())) << "nonsense";
  for (int i = 0; i < 3; ++i) f.tier->look_at_table();
  CHECK(f.log.size() == 1);
  CHECK_FALSE(f.tier->status().has_table);
  f.origin_reads = 0;
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 40);
  std::filesystem::remove(TierTable::file_in(state.path()));
  save(f.table);
  f.tier->look_at_table();
  f.tier->open_directories();
  CHECK(f.reads_right());
  CHECK(f.origin_reads == 40);
}

TEST_CASE("a rebalance forgets the places of before when all is moved, and is alone") {
  const TemporaryDirectory state;
  Fixture f({});
  const auto add = [&](const std::string& path) {
    const TierEntry entry = f.add_directory(path);
    TierTableChange change(state.path(), f.options.identity.uuid, f.options.host);
    change.table.add(entry);
    change.save();
  };
  add("/a");
  f.make(state.path());
  f.tier->look_at_table();
  f.tier->open_directories();
  f.tier->warm(f.wanted(), kNoProgress);
  add("/b");
  CHECK(f.tier->rebalance(true, kNoProgress).segments > 0);
  CHECK(f.tier->status().is_moving);
  Tier other(f.options, state.path());
  int code = 0;
  const auto result = f.tier->rebalance(false, [&](uint64_t, uint64_t) {
    if (code == 0) code = thrown_by([&] { other.rebalance(false, kNoProgress); }).code;
  });
  CHECK(code == EBUSY);
  CHECK(result.moved_segments == result.segments);
  CHECK_FALSE(f.tier->status().is_moving);
  CHECK(f.bytes_out_of_place() == 0);
  CHECK(other.rebalance(false, kNoProgress).segments == 0);
}

TEST_CASE("a store reads from the tier of its host, and tells of it") {
  const TemporaryDirectory state, ssd;
  StoreOptions options;
  options.has_tier = true;
  options.tier_state = state.path();
  auto backend = std::make_unique<MemoryBackend>();
  make_store(*backend);
  make_template(*backend, "a", {1, 2, 3, 4, 5, 6}, 6 * kBlockBytes, 2);
  Store store(std::move(backend), options);
  store.start();
  const auto disk = store.open_export("template/a", Peer{"a test"}, true);
  const auto reads_right = [&] {
    ByteVector bytes(6 * kBlockBytes);
    disk->read(0, bytes);
    return bytes == disk_of({1, 2, 3, 4, 5, 6});
  };
  CHECK(reads_right());
  CHECK_FALSE(store.stats().tier.is_used);
  CHECK(control::perform(store, {{"op", "tier-list"}})["directories"].empty());
  // A tier comes while it runs.
  const Uuid uuid = random_uuid(), store_uuid = load_identity(store.backend()).uuid;
  put_new_tier_identity(*open_backend(ssd.path(), {}), store_uuid, this_host().host_id, uuid);
  TierTableChange change(state.path(), store_uuid, this_host());
  change.table.add({uuid, ssd.path(), kTierWeightBytesMin, TierEntry::Kind::kSsd, false});
  change.save();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (store.stats().tier.reads == 0) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    CHECK(reads_right());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const nlohmann::json warm = {{"op", "template-warm"}, {"template", "a"}};
  const nlohmann::json warmed = control::perform(store, warm);
  control::check_result("this", warm, warmed);
  CHECK(warmed["missing"].empty());
  // A keeper may have put the last copy there, and is about to say so.
  for (bool is_of_copies = false; !is_of_copies;) {
    const uint64_t origin_reads = store.stats().tier.origin_reads;
    CHECK(reads_right());
    is_of_copies = store.stats().tier.origin_reads == origin_reads;
  }
  const nlohmann::json list = {{"op", "tier-list"}};
  const nlohmann::json listed = control::perform(store, list);
  control::check_result("this", list, listed);
  CHECK(listed["directories"][0]["path"] == ssd.path());
  CHECK(listed["directories"][0]["state"] == "ok");
  CHECK(listed["directories"][0]["segments"] == 3);
  CHECK(thrown_by([&] { store.warm_template("b", kNoProgress); }).code == ENOENT);
}

// --- threads

TEST_CASE("keepers fill while guests read, and none of them waits for a directory that hangs") {
  // The thread that is left behind may look at these when all else is over.
  static auto& f = *new Fixture({"/a", "/b", "/c"});
  static auto& barrier = *new Barrier;
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t filled = 0;
  f.options.clock = {};
  f.options.stop_patience = std::chrono::milliseconds(20);
  f.on_filled = [&] {
    const std::lock_guard guard(mutex);
    ++filled;
    changed.notify_all();
  };
  f.disks["/b"].around = [&](Call call, const std::string&, const std::function<void()>& go_on) {
    if (call == Call::kPutNew) barrier.hold();
    go_on();
  };
  f.make();
  f.tier->start();
  uint64_t expected = 0;
  for (const ManifestSegment& segment : f.segments)
    if (f.table.find(*f.table.placement.at(segment.name.high))->path != "/b") ++expected;
  for (;;) {
    CHECK(f.reads_right());
    std::unique_lock guard(mutex);
    if (changed.wait_for(guard, std::chrono::milliseconds(1), [&] { return filled >= expected; }))
      break;
  }
  barrier.await(1);
  for (const auto& directory : f.tier->status().directories)
    if (directory.entry.path == "/b") CHECK(directory.segments == 0);
  std::vector<std::thread> readers;
  std::atomic<int> right = 0;
  for (int i = 0; i < 4; ++i)
    readers.emplace_back([&] {
      for (int round = 0; round < 5; ++round)
        if (f.reads_right()) ++right;
    });
  for (std::thread& reader : readers) reader.join();
  CHECK(right == 20);
  f.image.reset();
  f.blocks->free_unused_copies();
  f.tier->stop();
  f.blocks.reset();
  f.tier.reset();
  f.on_filled = [] { FAIL("who was left behind told somebody of what it did"); };
  barrier.open();
}

}  // namespace tplstore::tier_test
