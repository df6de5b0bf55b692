// Random operations on a volume against plain byte arrays. Every retained version is compared, at
// the end of each round and after every reopening.
#include <algorithm>
#include <atomic>
#include <map>
#include <thread>

#include "volume_testing.h"

namespace tplstore::volume_model_test {
namespace {

constexpr uint64_t kTemplateBytes = 5 * (1 << 20) + 3 * kBlockBytes;
constexpr uint64_t kDiskBytes = 9 * (1 << 20) + 3 * kSectorBytes;
constexpr uint64_t kRequestBytesMax = 64 << 10;

// A template with data, holes, and blocks that are alike.
ByteVector make_template(Backend& backend, Random& random) {
  ByteVector image(kTemplateBytes);
  for (uint64_t at = 0; at < image.size(); at += 64 << 10) {
    const uint64_t length = std::min<uint64_t>(64 << 10, image.size() - at);
    if (random.chance(3)) continue;
    random.fill(MutableBytes(image).subspan(at, length));
  }
  import_test_template(backend, "golden", image);
  return image;
}

class Model {
 public:
  Model(Backend& backend, Random& random, bool has_template) : backend_(backend), random_(random) {
    std::shared_ptr<TemplateImage> base;
    if (has_template) base = environment_on(backend).open_template("golden");
    create_volume(backend, uuid_, kDiskBytes, base.get());
    current_.resize(kDiskBytes);
    open();
  }

  void set_template(const ByteVector& image) {
    std::copy(image.begin(), image.end(), current_.begin());
  }

  void step() {
    switch (random_.below(40)) {
      case 0:
        flush_or_maintain();
        break;
      case 1:
        if (random_.chance(8)) new_version();
        break;
      case 2:
        if (random_.chance(20)) reopen();
        break;
      case 3:
        if (random_.chance(20)) roll_back();
        break;
      case 4:
        if (random_.chance(60)) grow();
        break;
      case 5:
      case 6:
      case 7:
        discard();
        break;
      case 8:
        check_extents();
        break;
      case 9:
        check_version();
        break;
      default:
        if (random_.chance(3)) {
          check_range();
        } else {
          write();
        }
    }
  }

  void check_all() {
    CHECK(read_bytes(*volume_, 0, 0, current_.size()) == current_);
    const auto reader = Volume::open_for_reading(environment_on(backend_), uuid_, "vm");
    for (const auto& [number, bytes] : versions_) {
      INFO("version " << number);
      CHECK(volume_->versions().find(std::to_string(number)).size_bytes == bytes.size());
      CHECK(read_bytes(*volume_, number, 0, bytes.size()) == bytes);
      CHECK(read_bytes(*reader, number, 0, bytes.size()) == bytes);
    }
  }

  void close() {
    volume_->close();
    volume_.reset();
  }
  size_t version_count() const { return versions_.size(); }

 private:
  struct Range {
    uint64_t offset;
    uint64_t length;
  };

  void open() { volume_ = open_volume(backend_, uuid_); }

  Range range(uint64_t length_max) {
    // Half of all requests are near each other, so that they meet; some are whole blocks.
    const uint64_t size = current_.size();
    uint64_t offset = random_.chance(2) ? random_.below(size) : random_.below(256 << 10);
    uint64_t length = 1 + random_.below(random_.chance(3) ? length_max : 9000);
    if (random_.chance(2)) {
      offset = round_down(offset, kBlockBytes);
      length = round_up(length, kBlockBytes);
    }
    offset = std::min(offset, size - 1);
    return {offset, std::min(length, size - offset)};
  }

  void write() {
    const Range at = range(random_.chance(200) ? 6 << 20 : kRequestBytesMax);
    ByteVector bytes(at.length);
    random_.fill(bytes);
    volume_->write(at.offset, bytes, random_.chance(20));
    std::copy(bytes.begin(), bytes.end(), current_.begin() + static_cast<ptrdiff_t>(at.offset));
  }

  void discard() {
    const Range at = range(random_.chance(20) ? 6 << 20 : 4 * kRequestBytesMax);
    const bool durable = random_.chance(10);
    if (random_.chance(2)) {
      volume_->trim(at.offset, at.length, durable);
    } else {
      volume_->zero(at.offset, at.length, durable);
    }
    std::fill_n(current_.begin() + static_cast<ptrdiff_t>(at.offset), at.length, std::byte{0});
  }

  void check_range() {
    const Range at = range(kRequestBytesMax);
    const Bytes expected = Bytes(current_).subspan(at.offset, at.length);
    REQUIRE(std::ranges::equal(read_bytes(*volume_, 0, at.offset, at.length), expected));
  }

  void check_version() {
    if (versions_.empty()) return;
    const auto& [number, bytes] =
        *std::next(versions_.begin(), static_cast<ptrdiff_t>(random_.below(versions_.size())));
    const Range at = range(kRequestBytesMax);
    if (at.offset + at.length > bytes.size()) return;
    REQUIRE(std::ranges::equal(read_bytes(*volume_, number, at.offset, at.length),
                               Bytes(bytes).subspan(at.offset, at.length)));
  }

  void check_extents() {
    const Range at = range(random_.chance(4) ? 6 << 20 : kRequestBytesMax);
    uint64_t next = at.offset;
    bool was_hole = false;
    volume_->extents(0, at.offset, at.length, [&](const Extent& extent) {
      REQUIRE(extent.offset == next);
      REQUIRE(extent.length > 0);
      if (next != at.offset) REQUIRE(extent.is_hole != was_hole);
      was_hole = extent.is_hole;
      if (extent.is_hole) REQUIRE(is_zero(Bytes(current_).subspan(extent.offset, extent.length)));
      next += extent.length;
      return true;
    });
    REQUIRE(next == at.offset + at.length);
  }

  void flush_or_maintain() {
    switch (random_.below(12)) {
      case 0:
        volume_->checkpoint();
        break;
      case 1:
        if (random_.chance(3)) volume_->compact_log();
        break;
      case 2:
      case 3:
        volume_->maintain(true);
        break;
      default:
        volume_->flush();
    }
  }

  void new_version() {
    const std::string name = random_.chance(2) ? fmt::format("v-{}", versions_.size()) : "";
    const VersionInfo frozen = volume_->versions().create({name, "", {}});
    versions_[frozen.number] = current_;
  }

  void roll_back() {
    if (versions_.empty()) return;
    const auto target =
        std::next(versions_.begin(), static_cast<ptrdiff_t>(random_.below(versions_.size())));
    const ByteVector bytes = target->second;
    const VersionInfo frozen = volume_->versions().rollback(std::to_string(target->first));
    versions_[frozen.number] = current_;
    current_ = bytes;
    REQUIRE(volume_->size_bytes() == current_.size());
  }

  void grow() {
    const uint64_t size = current_.size() + kSectorBytes * (1 + random_.below(3000));
    if (size > 2 * kDiskBytes) return;
    volume_->resize(size);
    current_.resize(size);
  }

  void reopen() {
    volume_->close();
    volume_.reset();
    open();
    check_all();
  }

  Backend& backend_;
  Random& random_;
  const Uuid uuid_ = random_uuid();
  std::unique_ptr<Volume> volume_;
  ByteVector current_;
  std::map<uint32_t, ByteVector> versions_;
};

}  // namespace

TEST_CASE("a volume behaves like a byte array, whatever is done to it") {
  Random random(test_seed());
  const uint64_t operations = test_operations(kIsSanitized ? 20'000 : 60'000);
  uint64_t done = 0;
  for (unsigned round = 0; done < operations; ++round) {
    const auto backend = memory_store();
    backend->set_recording(false);
    const bool has_template = round % 3 != 2;
    ByteVector image;
    if (has_template) image = make_template(*backend, random);
    Model model(*backend, random, has_template);
    if (has_template) model.set_template(image);
    for (unsigned i = 0; i < 5000 && done < operations && model.version_count() < 24; ++i, ++done)
      model.step();
    model.check_all();
    model.close();
  }
  MESSAGE(done << " operations");
}

TEST_CASE("threads that write parts of the same blocks never lose each other's bytes") {
  // Sector s belongs to thread s % kThreads; so blocks are shared and first writes of them race.
  // A sector holds its number and a count that only rises.
  constexpr unsigned kThreads = 4;
  constexpr uint64_t kSectors = 2048 * 4;
  constexpr uint64_t kCountMax = uint64_t{1} << 40;
  const uint64_t seed = test_seed();
  const auto backend = memory_store();
  backend->set_recording(false);
  const Uuid uuid = random_uuid();
  create_volume(*backend, uuid, kSectors * kSectorBytes, nullptr);
  auto volume = open_volume(*backend, uuid);

  struct Sector {
    uint64_t number;
    uint64_t count;
  };
  const auto sector_of = [](uint64_t number, uint64_t count) {
    ByteVector bytes(kSectorBytes);
    const Sector sector{number, count};
    for (size_t i = 0; i < kSectorBytes; i += sizeof sector)
      std::memcpy(bytes.data() + i, &sector, sizeof sector);
    return bytes;
  };
  std::vector<std::atomic<uint64_t>> begun(kSectors);
  std::vector<std::atomic<uint64_t>> ended(kSectors);
  std::atomic<unsigned> running{kThreads};
  std::atomic<uint64_t> failures{0};
  const uint64_t writes = test_operations(kIsSanitized ? 40'000 : 100'000) / kThreads;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Random random(seed + t);
      uint64_t count = 0;
      for (uint64_t i = 0; i < writes; ++i) {
        const uint64_t number = random.below(kSectors / kThreads) * kThreads + t;
        const uint64_t offset = number * kSectorBytes;
        if (random.chance(50)) {
          begun[number] = ++count + kCountMax;  // from here to the next write: zero or newer
          volume->zero(offset, kSectorBytes, random.chance(10));
          ended[number] = count + kCountMax;
          if (!is_zero(read_bytes(*volume, 0, offset, kSectorBytes))) ++failures;
        } else {
          begun[number] = ++count;
          const ByteVector bytes = sector_of(number, count);
          volume->write(offset, bytes, random.chance(100));
          ended[number] = count;
          if (read_bytes(*volume, 0, offset, kSectorBytes) != bytes) ++failures;
        }
        if (random.chance(200)) volume->flush();
      }
      --running;
    });
  }
  // Meanwhile: versions, removals of others, holes, checkpoints, compactions, eviction. A version
  // holds, for each sector, nothing older than what had ended before it and nothing newer than what
  // had begun after it.
  Random random(seed + 100);
  std::map<uint32_t, ByteVector> kept;
  while (running > 0) {
    std::vector<uint64_t> floor(kSectors);
    for (uint64_t s = 0; s < kSectors; ++s) floor[s] = ended[s] % kCountMax;
    const VersionInfo version = volume->versions().create({});
    std::vector<uint64_t> ceiling(kSectors);
    for (uint64_t s = 0; s < kSectors; ++s) ceiling[s] = begun[s] % kCountMax;
    const ByteVector bytes = read_bytes(*volume, version.number, 0, kSectors * kSectorBytes);
    for (uint64_t s = 0; s < kSectors; ++s) {
      Sector sector;
      std::memcpy(&sector, bytes.data() + s * kSectorBytes, sizeof sector);
      if (is_zero(Bytes(bytes).subspan(s * kSectorBytes, kSectorBytes))) continue;
      const bool is_good = sector.number == s && sector.count >= floor[s] &&
                           sector.count <= ceiling[s] &&
                           std::ranges::equal(sector_of(s, sector.count),
                                              Bytes(bytes).subspan(s * kSectorBytes, kSectorBytes));
      if (!is_good) ++failures;
    }
    REQUIRE(bytes == read_bytes(*volume, version.number, 0, bytes.size()));
    kept[version.number] = bytes;
    while (kept.size() > 4) {
      const auto gone = std::next(kept.begin(), static_cast<ptrdiff_t>(random.below(kept.size())));
      volume->versions().remove({std::to_string(gone->first)});
      kept.erase(gone);
    }
    volume->space().run(std::chrono::milliseconds(5));
    for (const auto& [number, content] : kept)
      if (random.chance(4)) CHECK(read_bytes(*volume, number, 0, content.size()) == content);
    if (random.chance(3)) volume->checkpoint();
    if (random.chance(5)) volume->compact_log();
    volume->maintain(random.chance(2));
    if (version.number > 200) break;
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failures == 0);
  for (const auto& [number, content] : kept)
    CHECK(read_bytes(*volume, number, 0, content.size()) == content);
  const ByteVector before = read_bytes(*volume, 0, 0, kSectors * kSectorBytes);
  for (uint64_t s = 0; s < kSectors; ++s) {
    const uint64_t count = ended[s];
    const Bytes sector = Bytes(before).subspan(s * kSectorBytes, kSectorBytes);
    if (count == 0 || count > kCountMax) {
      CHECK(is_zero(sector));
    } else {
      CHECK(std::ranges::equal(sector, sector_of(s, count)));
    }
  }
  volume->close();
  volume = open_volume(*backend, uuid);
  CHECK(read_bytes(*volume, 0, 0, before.size()) == before);
  volume->close();
}

}  // namespace tplstore::volume_model_test
