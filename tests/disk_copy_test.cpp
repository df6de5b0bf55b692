// What is taken out of a disk: all its data and no holes, in runs that are full of zeroes or not.
#include "transfer/disk_copy.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace tplstore::disk_copy_test {
namespace {

constexpr uint64_t kUnit = 4096;

// A disk of holes and data, which a read may not leave.
class PatchyDisk final : public Disk {
 public:
  PatchyDisk(ByteVector content, std::vector<Extent> extents)
      : content_(std::move(content)), extents_(std::move(extents)) {}
  uint64_t size_bytes() const override { return content_.size(); }
  bool is_writable() const override { return false; }
  bool allows_multi_conn() const override { return true; }
  void read(uint64_t offset, MutableBytes into) override {
    for (const Extent& extent : extents_)
      if (extent.is_hole)
        CHECK((offset + into.size() <= extent.offset || offset >= extent.offset + extent.length));
    std::copy_n(content_.begin() + static_cast<ptrdiff_t>(offset), into.size(), into.begin());
  }
  void extents(uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add) override {
    for (const Extent& extent : extents_)
      if (extent.offset >= offset && extent.offset < offset + length && !add(extent)) return;
  }
  void write(uint64_t, Bytes, bool) override { FAIL("a copy writes nothing"); }
  void trim(uint64_t, uint64_t, bool) override { FAIL("a copy trims nothing"); }
  void zero(uint64_t, uint64_t, bool) override { FAIL("a copy zeroes nothing"); }
  void flush() override {}
  void cache(uint64_t, uint64_t) override {}

 private:
  ByteVector content_;
  std::vector<Extent> extents_;
};

struct Run {
  uint64_t offset, length;
  bool is_zeroes;
  bool operator==(const Run&) const = default;
};

}  // namespace

TEST_CASE("runs end where zeroes begin, at the ends of pieces and of data") {
  // Data, a hole, data that begins and ends within a unit.
  ByteVector content(10 * kUnit + 512, std::byte{0});
  content[0] = content[3 * kUnit] = std::byte{1};
  content[8 * kUnit - 1] = content[10 * kUnit + 511] = std::byte{2};
  PatchyDisk disk(content, {{0, 5 * kUnit, false},
                            {5 * kUnit, 2 * kUnit + 512, true},
                            {7 * kUnit + 512, 3 * kUnit, false}});
  ByteVector buffer(2 * kUnit);
  std::vector<Run> runs;
  std::vector<uint64_t> told;
  copy_disk(disk, {.piece_bytes = 2 * kUnit,
                   .unit_bytes = kUnit,
                   .take_buffer = [&] { return MutableBytes(buffer); },
                   .add =
                       [&](uint64_t offset, Bytes run, bool is_zeroes) {
                         runs.push_back({offset, run.size(), is_zeroes});
                         CHECK(is_zero(run) == is_zeroes);
                         CHECK(std::equal(run.begin(), run.end(),
                                          content.begin() + static_cast<ptrdiff_t>(offset)));
                       },
                   .progress = [&](uint64_t offset) { told.push_back(offset); }});
  CHECK(runs == std::vector<Run>{{0, kUnit, false},
                                 {kUnit, kUnit, true},
                                 {2 * kUnit, kUnit, true},
                                 {3 * kUnit, kUnit, false},
                                 {4 * kUnit, kUnit, true},
                                 {7 * kUnit + 512, kUnit - 512, false},
                                 {8 * kUnit, kUnit, true},
                                 {9 * kUnit, kUnit, true},
                                 {10 * kUnit, 512, false}});
  CHECK(told == std::vector<uint64_t>{0, 2 * kUnit, 4 * kUnit, 7 * kUnit + 512, 9 * kUnit,
                                      10 * kUnit + 512});
}

TEST_CASE("a copy that is interrupted ends at once") {
  PatchyDisk disk(ByteVector(8 * kUnit, std::byte{1}), {{0, 8 * kUnit, false}});
  ByteVector buffer(kUnit);
  int added = 0;
  CHECK_THROWS_AS(copy_disk(disk, {.piece_bytes = kUnit,
                                   .unit_bytes = kUnit,
                                   .take_buffer = [&] { return MutableBytes(buffer); },
                                   .add = [&](uint64_t, Bytes, bool) { ++added; },
                                   .progress =
                                       [](uint64_t offset) {
                                         if (offset >= 3 * kUnit)
                                           fail(EINTR, "a file", "interrupted");
                                       }}),
                  Error);
  CHECK(added == 3);
}

}  // namespace tplstore::disk_copy_test
