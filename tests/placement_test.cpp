// Placement: whatever is added, removed and weighed anew, every position has one directory, every
// directory its share, and no more moves than has to. TPLSTORE_OPERATIONS sequences, by default
// 100,000 in the release preset.
#include "tier/placement.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "volume_testing.h"

namespace tplstore::placement_test {
namespace {

using Wide = unsigned __int128;
using Weights = std::vector<DirectoryWeight>;
constexpr Wide kSpace = Wide{1} << 64;

// Small numbers as uuids, so that the test is fast.
Uuid uuid_of(uint64_t number) {
  Uuid uuid;
  std::memcpy(uuid.bytes, &number, sizeof number);
  return uuid;
}

struct Owned {
  PositionRange range;
  Uuid directory;
};

Wide size_of(const PositionRange& range) { return Wide{range.last - range.first} + 1; }

// All ranges in their order, as the directories tell them one by one.
std::vector<Owned> all_ranges(const Placement& placement, const Weights& weights) {
  std::vector<Owned> all;
  for (const DirectoryWeight& weight : weights)
    for (const PositionRange& range : placement.ranges_of(weight.directory))
      all.push_back({range, weight.directory});
  std::ranges::sort(all, {}, [](const Owned& owned) { return owned.range.first; });
  return all;
}

Wide total_of(const Weights& weights) {
  Wide total = 0;
  for (const DirectoryWeight& weight : weights) total += weight.bytes;
  return total;
}

// What is wrong with a placement of these weights; empty when nothing is.
std::string problem_of(const Placement& placement, const Weights& weights) {
  if (placement.is_empty() != weights.empty()) return "it is empty, or not, unduly";
  if (weights.empty()) return placement.at(0) == nullptr ? "" : "nobody has position 0";
  const std::vector<Owned> all = all_ranges(placement, weights);
  std::map<Uuid, Wide> sizes;
  std::map<Uuid, size_t> counts;
  uint64_t next = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& [range, directory] = all[i];
    if (range.first != next || range.last < range.first) return "a gap or an overlap";
    if (i + 1 < all.size() && range.last == UINT64_MAX) return "it ends before its last range";
    if (i > 0 && all[i - 1].directory == directory) return "two ranges that touch";
    if (*placement.at(range.first) != directory || *placement.at(range.last) != directory)
      return "an end of a range is another's";
    sizes[directory] += size_of(range);
    if (++counts[directory] > kTierRangesMax) return "too many ranges";
    next = range.last + 1;
  }
  if (next != 0) return "it does not reach the end";
  const Wide total = total_of(weights);
  for (const DirectoryWeight& weight : weights) {
    const Wide has = sizes[weight.directory] * total, due = weight.bytes * kSpace;
    if ((has > due ? has - due : due - has) >= total) return "a share is off by a position or more";
  }
  return "";
}

// Positions that are of another directory afterwards.
Wide moved(const std::vector<Owned>& before, const std::vector<Owned>& after) {
  Wide result = 0;
  for (size_t i = 0, j = 0; i < before.size() && j < after.size();) {
    const PositionRange both = {std::max(before[i].range.first, after[j].range.first),
                                std::min(before[i].range.last, after[j].range.last)};
    if (before[i].directory != after[j].directory) result += size_of(both);
    if (before[i].range.last == both.last) ++i;
    if (after[j].range.last == both.last) ++j;
  }
  return result;
}

// The part of the space that has to move, at least: what all together get more than they had.
double least_to_move(const Weights& before, const Weights& after) {
  const auto share_in = [](const Weights& weights, const Uuid& uuid) {
    const auto found = std::ranges::find(weights, uuid, &DirectoryWeight::directory);
    return found == weights.end()
               ? 0
               : static_cast<double>(found->bytes) / static_cast<double>(total_of(weights));
  };
  double sum = 0;
  for (const DirectoryWeight& weight : after)
    sum += std::max(0.0, share_in(after, weight.directory) - share_in(before, weight.directory));
  return sum;
}

struct Counts {
  uint64_t operations = 0;
  uint64_t layouts = 0;
  size_t ranges_max = 0;
};

// A placement that is changed at random, and looked at after every change.
class Walk {
 public:
  explicit Walk(Random& random) : random_(random) {}

  void start(size_t directories) {
    while (weights_.size() < directories) add();
    placement_ = Placement().with_weights(weights_).placement;
    REQUIRE_EQ(problem_of(placement_, weights_), "");
    REQUIRE_EQ(all_ranges(placement_, weights_).size(), weights_.size());
  }

  void change(Counts& counts) {
    const Weights before = weights_;
    const uint64_t choice = random_.below(3);
    if (choice == 0 && weights_.size() < kTierDirectoriesMax)
      add();
    else if (choice == 1 && !weights_.empty())
      weights_.erase(weights_.begin() + static_cast<ptrdiff_t>(random_.below(weights_.size())));
    else if (!weights_.empty())
      weights_[random_.below(weights_.size())].bytes = weight();
    const auto [next, is_laid_out_anew] = placement_.with_weights(weights_);
    REQUIRE_EQ(problem_of(next, weights_), "");
    const std::vector<Owned> old_ranges = all_ranges(placement_, before);
    const std::vector<Owned> new_ranges = all_ranges(next, weights_);
    if (!is_laid_out_anew && !before.empty() && !weights_.empty()) {
      const double part =
          static_cast<double>(moved(old_ranges, new_ranges)) / static_cast<double>(kSpace);
      REQUIRE_LE(part, least_to_move(before, weights_) + 1e-9);
    }
    placement_ = next;
    ++counts.operations;
    counts.layouts += is_laid_out_anew;
    counts.ranges_max = std::max(counts.ranges_max, new_ranges.size());
  }

 private:
  // From 64 MiB to 64 TiB, evenly by their logarithm; some are the same, and some the outermost.
  uint64_t weight() {
    const uint64_t kind = random_.below(8);
    if (kind == 0) return kTierWeightBytesMin;
    if (kind == 1) return uint64_t{64} << 40;
    if (kind < 4) return uint64_t{1} << 40;
    const auto power = static_cast<double>(random_.below(20'000)) / 1000;
    return static_cast<uint64_t>(std::exp2(26 + power)) + random_.below(4096);
  }
  void add() { weights_.push_back({uuid_of(++last_uuid_), weight()}); }

  Random& random_;
  Weights weights_;
  Placement placement_;
  uint64_t last_uuid_ = 0;
};

Placement placement_of(const std::vector<DirectoryRanges>& ranges) {
  std::string problem;
  auto placement = Placement::from_ranges(ranges, problem);
  REQUIRE_MESSAGE(placement, problem);
  return *placement;
}

std::string refusal_of(const std::vector<DirectoryRanges>& ranges) {
  std::string problem = "accepted";
  Placement::from_ranges(ranges, problem);
  return problem;
}

}  // namespace

TEST_CASE("after any changes every position has one directory and every directory its share") {
  Random random(test_seed());
  Counts counts;
  for (uint64_t i = test_operations(kIsSanitized ? 1'000 : 100'000); i > 0; --i) {
    Walk walk(random);
    walk.start(random.below(8) == 0 ? 1 + random.below(kTierDirectoriesMax) : random.below(8));
    for (uint64_t steps = 1 + random.below(4); steps > 0; --steps) walk.change(counts);
  }
  MESSAGE(counts.operations << " changes, at most " << counts.ranges_max
                            << " ranges, laid out anew " << counts.layouts << " times");
  CHECK_LE(counts.layouts * 1'000, counts.operations);
}

TEST_CASE("a table that is changed for ever seldom has to be laid out anew") {
  Random random(test_seed());
  for (const size_t directories : {3, 16, 62}) {
    Counts counts;
    Walk walk(random);
    walk.start(directories);
    for (uint64_t i = test_operations(kIsSanitized ? 200 : 2'000); i > 0; --i) walk.change(counts);
    MESSAGE(directories << " directories: at most " << counts.ranges_max
                        << " ranges, laid out anew " << counts.layouts << " times");
    CHECK_LE(counts.layouts * 1'000, counts.operations);
  }
}

TEST_CASE("what is added takes its share from all others in proportion, and gives it back so") {
  const Uuid a = uuid_of(1), b = uuid_of(2), c = uuid_of(3);
  const uint64_t unit = uint64_t{1} << 40;
  const Placement two = Placement().with_weights(Weights{{a, unit}, {b, 3 * unit}}).placement;
  constexpr uint64_t kQuarter = UINT64_MAX / 4 + 1;
  CHECK_EQ(two.ranges_of(b), std::vector<PositionRange>{{0, 3 * kQuarter - 1}});
  CHECK_EQ(two.ranges_of(a), std::vector<PositionRange>{{3 * kQuarter, UINT64_MAX}});

  const Weights weights = {{a, unit}, {b, 3 * unit}, {c, 4 * unit}};
  const Placement three = two.with_weights(weights).placement;
  CHECK_EQ(three.share_of(a), 0.125);
  CHECK_EQ(three.share_of(b), 0.375);
  CHECK_EQ(three.share_of(c), 0.5);
  // Where they touch they both let go, so that it is one range.
  CHECK_EQ(three.ranges_of(c).size(), 1);

  const Placement again = three.with_weights(std::span(weights).first(2)).placement;
  CHECK_EQ(again, two);
  CHECK(again.with_weights({}).placement.is_empty());
  CHECK(again.ranges_of(c).empty());
  CHECK_EQ(again.share_of(c), 0);
}

TEST_CASE("where a directory would get too many ranges all are laid out anew") {
  // In turn, so that who gets what two of them had gets all of their ranges.
  std::vector<DirectoryRanges> ranges;
  constexpr uint64_t kStep = UINT64_MAX / (4 * kTierRangesMax) + 1;
  for (uint64_t i = 0; i < 4; ++i) {
    ranges.push_back({uuid_of(i + 1), {}});
    for (uint64_t j = 0; j < kTierRangesMax; ++j)
      ranges.back().ranges.push_back({(4 * j + i) * kStep, (4 * j + i) * kStep + (kStep - 1)});
  }
  const Placement full = placement_of(ranges);
  const uint64_t weight = uint64_t{1} << 40;
  const Weights one_gone = {
      {uuid_of(1), weight}, {uuid_of(2), weight}, {uuid_of(5), weight}, {uuid_of(4), weight}};
  const auto [as_it_was, is_anew] = full.with_weights(one_gone);
  CHECK_FALSE(is_anew);
  CHECK_EQ(as_it_was.ranges_of(uuid_of(5)), full.ranges_of(uuid_of(3)));

  const Weights two_gone = {{uuid_of(2), weight}, {uuid_of(4), weight}, {uuid_of(5), 2 * weight}};
  const auto [next, is_laid_out_anew] = full.with_weights(two_gone);
  CHECK(is_laid_out_anew);
  CHECK_EQ(problem_of(next, two_gone), "");
  CHECK_EQ(all_ranges(next, two_gone).size(), 3);
}

TEST_CASE("the first and the last position are somebody's") {
  CHECK_EQ(Placement().at(0), nullptr);
  CHECK_EQ(Placement().at(UINT64_MAX), nullptr);
  const Placement one =
      Placement().with_weights(Weights{{uuid_of(1), kTierWeightBytesMin}}).placement;
  CHECK_EQ(*one.at(0), uuid_of(1));
  CHECK_EQ(*one.at(UINT64_MAX), uuid_of(1));
  CHECK_EQ(one.share_of(uuid_of(1)), 1);
  Weights heaviest;
  for (uint64_t i = 1; i <= kTierDirectoriesMax; ++i)
    heaviest.push_back({uuid_of(i), kTierWeightBytesMax});
  const Placement many = one.with_weights(heaviest).placement;
  CHECK_EQ(problem_of(many, heaviest), "");
}

TEST_CASE("ranges that were kept are a placement again, and others are refused") {
  const Uuid a = uuid_of(1), b = uuid_of(2);
  const Weights weights = {{a, kTierWeightBytesMin}, {b, kTierWeightBytesMax}};
  const Placement placement = Placement().with_weights(weights).placement;
  const PositionRange first = placement.ranges_of(a)[0], second = placement.ranges_of(b)[0];
  CHECK_EQ(placement_of({{a, {first}}, {b, {second}}}), placement);
  CHECK(placement_of({}).is_empty());
  CHECK(placement_of({{a, {}}}).is_empty());
  // In any order, and what touches is joined.
  CHECK_EQ(placement_of({{a, {{8, UINT64_MAX}, {0, 3}, {4, 7}}}}).ranges_of(a),
           std::vector<PositionRange>{{0, UINT64_MAX}});

  const std::string from_9 = "no range has position 0000000000000009";
  CHECK_EQ(refusal_of({{a, {{0, 8}}}}), from_9);
  CHECK_EQ(refusal_of({{a, {{0, 8}}}, {b, {{10, UINT64_MAX}}}}), from_9);
  CHECK_EQ(refusal_of({{a, {{1, UINT64_MAX}}}}), "no range has position 0000000000000000");
  CHECK_EQ(refusal_of({{a, {{0, UINT64_MAX - 1}}}}), "no range has position ffffffffffffffff");
  const std::string at_8 = "the ranges overlap at position 0000000000000008";
  CHECK_EQ(refusal_of({{a, {{0, 8}}}, {b, {{8, UINT64_MAX}}}}), at_8);
  CHECK_EQ(refusal_of({{a, {{0, UINT64_MAX}}}, {b, {{8, 9}}}}), at_8);
  CHECK_EQ(refusal_of({{a, {{8, 7}}}}), at_8);
  CHECK_EQ(refusal_of({{a, {{0, UINT64_MAX}, {0, UINT64_MAX}}}}),
           "the ranges overlap at position 0000000000000000");
  const std::string twice = refusal_of({{a, {{0, 8}}}, {a, {{9, UINT64_MAX}}}});
  CHECK_MESSAGE(twice.find("twice") != std::string::npos, twice);
  DirectoryRanges many{a, std::vector<PositionRange>(kTierRangesMax + 1)};
  CHECK(refusal_of({many}).find("1025 ranges") != std::string::npos);
}

}  // namespace tplstore::placement_test
