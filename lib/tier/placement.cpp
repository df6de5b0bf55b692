// A change of weights is a change of shares: first those that have too much let go of whole ranges,
// the smallest first, and of a part of one more; then what is free is given to its neighbours where
// they lack it, and to the others. Whole small ranges, and parts where others let go of theirs,
// keep the number of ranges low however often weights change.
#include "tier/placement.h"

#include <algorithm>
#include <numeric>
#include <set>

namespace tplstore {
namespace {

using Wide = unsigned __int128;
constexpr Wide kSpace = Wide{1} << 64;
constexpr uint32_t kNobody = UINT32_MAX;

struct Piece {
  Wide size;
  uint32_t owner;
};

// How many positions each has, in the order of the weights.
std::vector<Wide> shares_of(std::span<const DirectoryWeight> weights) {
  Wide total = 0;
  for (const DirectoryWeight& weight : weights) total += weight.bytes;
  static_assert(Wide{kTierWeightBytesMax} * kTierDirectoriesMax <= kSpace / 4);  // no overflow
  std::vector<Wide> shares;
  Wide end = 0, sum = 0;
  for (const DirectoryWeight& weight : weights) {
    sum += weight.bytes;
    const Wide begin = std::exchange(end, sum * kSpace / total);
    shares.push_back(end - begin);
  }
  return shares;
}

// The whole space as pieces in their order, while it is handed over.
class Draft {
 public:
  Draft(std::vector<Piece> pieces, std::vector<Wide> shares)
      : pieces_(std::move(pieces)), lacks_(std::move(shares)), spares_(lacks_.size()) {
    std::vector<Wide> has(lacks_.size());
    for (const Piece& piece : pieces_)
      if (piece.owner != kNobody) has[piece.owner] += piece.size;
    for (size_t i = 0; i < lacks_.size(); ++i) {
      const Wide share = lacks_[i];
      lacks_[i] = share > has[i] ? share - has[i] : 0;
      spares_[i] = has[i] > share ? has[i] - share : 0;
    }
  }

  std::vector<Piece> settle() {
    free_whole_pieces();
    free_parts();
    give_whole_pieces();
    give_parts();
    const auto is_zero_size = [](Wide size) { return size == 0; };
    ensure(std::ranges::all_of(lacks_, is_zero_size) && std::ranges::all_of(spares_, is_zero_size),
           "every directory of a placement has its share");
    return std::move(pieces_);
  }

 private:
  bool lacks(uint32_t owner) const { return owner != kNobody && lacks_[owner] > 0; }
  bool spares(uint32_t owner) const { return owner != kNobody && spares_[owner] > 0; }

  std::vector<size_t> smallest_first() const {
    std::vector<size_t> order(pieces_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, {}, [this](size_t i) { return pieces_[i].size; });
    return order;
  }

  void append(std::vector<Piece>& pieces, Wide size, uint32_t owner) const {
    if (size == 0) return;
    if (!pieces.empty() && pieces.back().owner == owner)
      pieces.back().size += size;
    else
      pieces.push_back({size, owner});
  }
  void join() {
    std::vector<Piece> joined;
    for (const Piece& piece : pieces_) append(joined, piece.size, piece.owner);
    pieces_ = std::move(joined);
  }

  // Afterwards every piece of who spares something is larger than that.
  void free_whole_pieces() {
    for (const size_t i : smallest_first()) {
      Piece& piece = pieces_[i];
      if (!spares(piece.owner) || piece.size > spares_[piece.owner]) continue;
      spares_[piece.owner] -= piece.size;
      piece.owner = kNobody;
    }
    join();
  }

  // What is left to spare, each at one end of one piece: where it touches what is free, or who will
  // get it, or another such end; else at its largest.
  void free_parts() {
    std::vector<Wide> at_start(pieces_.size()), at_end(pieces_.size());
    const auto cut = [this](Wide& size, uint32_t owner) {
      size = std::exchange(spares_[owner], 0);
    };
    const auto is_open = [this](uint32_t owner) { return owner == kNobody || lacks(owner); };
    for (size_t i = 0; i + 1 < pieces_.size(); ++i) {
      const uint32_t left = pieces_[i].owner, right = pieces_[i + 1].owner;
      if (spares(left) && is_open(right)) cut(at_end[i], left);
      if (is_open(left) && spares(right)) cut(at_start[i + 1], right);
    }
    for (size_t i = 0; i + 1 < pieces_.size(); ++i) {
      const uint32_t left = pieces_[i].owner, right = pieces_[i + 1].owner;
      if (!spares(left) || !spares(right)) continue;
      cut(at_end[i], left);
      cut(at_start[i + 1], right);
    }
    const std::vector<size_t> order = smallest_first();
    for (auto i = order.rbegin(); i != order.rend(); ++i)
      if (spares(pieces_[*i].owner)) cut(at_end[*i], pieces_[*i].owner);

    std::vector<Piece> parts;
    for (size_t i = 0; i < pieces_.size(); ++i) {
      append(parts, at_start[i], kNobody);
      append(parts, pieces_[i].size - at_start[i] - at_end[i], pieces_[i].owner);
      append(parts, at_end[i], kNobody);
    }
    pieces_ = std::move(parts);
  }

  // To a neighbour that lacks as much.
  void give_whole_pieces() {
    const auto takes = [this](Piece& piece, uint32_t owner) {
      if (!lacks(owner) || lacks_[owner] < piece.size) return false;
      lacks_[owner] -= piece.size;
      piece.owner = owner;
      return true;
    };
    for (const size_t i : smallest_first()) {
      Piece& piece = pieces_[i];
      if (piece.owner != kNobody) continue;
      if (i > 0 && takes(piece, pieces_[i - 1].owner)) continue;
      if (i + 1 < pieces_.size()) takes(piece, pieces_[i + 1].owner);
    }
    join();
  }

  // Of each that is left its neighbours get what they lack, and who lacks most the rest.
  void give_parts() {
    std::vector<Piece> given;
    for (size_t i = 0; i < pieces_.size(); ++i) {
      const Piece& piece = pieces_[i];
      if (piece.owner != kNobody) {
        append(given, piece.size, piece.owner);
        continue;
      }
      Wide rest = piece.size;
      const auto take = [&](uint32_t owner) {
        const Wide size = lacks(owner) ? std::min(rest, lacks_[owner]) : 0;
        if (size > 0) lacks_[owner] -= size;
        rest -= size;
        return size;
      };
      const uint32_t left = given.empty() ? kNobody : given.back().owner;
      const uint32_t right = i + 1 < pieces_.size() ? pieces_[i + 1].owner : kNobody;
      append(given, take(left), left);
      const Wide for_right = take(right);
      while (rest > 0) {
        const auto most = std::ranges::max_element(lacks_);
        ensure(most != lacks_.end() && *most > 0, "what is given of a placement is lacking");
        const auto owner = static_cast<uint32_t>(most - lacks_.begin());
        append(given, take(owner), owner);
      }
      append(given, for_right, right);
    }
    pieces_ = std::move(given);
  }

  std::vector<Piece> pieces_;
  std::vector<Wide> lacks_, spares_;  // of each directory: how many positions it is to get, to lose
};

bool has_too_many_ranges(const std::vector<Piece>& pieces, size_t directories) {
  std::vector<size_t> counts(directories);
  for (const Piece& piece : pieces)
    if (++counts[piece.owner] > kTierRangesMax) return true;
  return false;
}

}  // namespace

std::optional<Placement> Placement::from_ranges(std::span<const DirectoryRanges> directories,
                                                std::string& problem) {
  struct Kept {
    PositionRange range;
    uint32_t owner;
  };
  std::vector<Kept> all;
  std::set<Uuid> seen;
  Placement result;
  for (const auto& [directory, ranges] : directories) {
    if (!seen.insert(directory).second || seen.size() > kTierDirectoriesMax ||
        ranges.size() > kTierRangesMax) {
      problem = fmt::format("directory {} is there twice, or one too many, or has {} ranges",
                            directory.text(), ranges.size());
      return std::nullopt;
    }
    if (ranges.empty()) continue;
    for (const PositionRange& range : ranges)
      all.push_back({range, static_cast<uint32_t>(result.directories_.size())});
    result.directories_.push_back(directory);
  }
  if (all.empty()) return result;
  std::ranges::sort(all, {}, [](const Kept& kept) { return kept.range.first; });
  uint64_t next = 0;
  bool is_at_end = false;
  for (const auto& [range, owner] : all) {
    if (range.last < range.first || is_at_end || range.first < next) {
      problem = fmt::format("the ranges overlap at position {:016x}", range.first);
      return std::nullopt;
    }
    if (range.first > next) break;
    if (result.owners_.empty() || result.owners_.back() != owner) {
      result.firsts_.push_back(range.first);
      result.owners_.push_back(owner);
    }
    next = range.last + 1;
    is_at_end = next == 0;
  }
  if (is_at_end) return result;
  problem = fmt::format("no range has position {:016x}", next);
  return std::nullopt;
}

Placement::Change Placement::with_weights(std::span<const DirectoryWeight> weights) const {
  ensure(weights.size() <= kTierDirectoriesMax, "a placement has no more directories than it may");
  Change change{{}, false};
  if (weights.empty()) return change;
  for (const DirectoryWeight& weight : weights) {
    ensure(weight.bytes >= kTierWeightBytesMin && weight.bytes <= kTierWeightBytesMax,
           "the weight of a directory is within its limits");
    change.placement.directories_.push_back(weight.directory);
  }

  // Whose each range is now; nobody's when that directory has gone.
  const std::vector<Uuid>& directories = change.placement.directories_;
  std::vector<Piece> pieces;
  for (size_t i = 0; i < firsts_.size(); ++i) {
    const Wide end = i + 1 < firsts_.size() ? Wide{firsts_[i + 1]} : kSpace;
    const auto known = std::ranges::find(directories, directories_[owners_[i]]);
    pieces.push_back({end - firsts_[i], known == directories.end()
                                            ? kNobody
                                            : static_cast<uint32_t>(known - directories.begin())});
  }
  const std::vector<Piece> nobodys = {{kSpace, kNobody}};
  const std::vector<Wide> shares = shares_of(weights);
  if (pieces.empty()) pieces = nobodys;
  pieces = Draft(std::move(pieces), shares).settle();
  change.is_laid_out_anew = has_too_many_ranges(pieces, directories.size());
  if (change.is_laid_out_anew) pieces = Draft(nobodys, shares).settle();

  Wide first = 0;
  for (const Piece& piece : pieces) {
    change.placement.firsts_.push_back(static_cast<uint64_t>(first));
    change.placement.owners_.push_back(piece.owner);
    first += piece.size;
  }
  return change;
}

const Uuid* Placement::at(uint64_t position) const {
  if (firsts_.empty()) return nullptr;
  const auto next = std::ranges::upper_bound(firsts_, position);
  return &directories_[owners_[static_cast<size_t>(next - firsts_.begin()) - 1]];
}

std::vector<PositionRange> Placement::ranges_of(const Uuid& directory) const {
  std::vector<PositionRange> ranges;
  for (size_t i = 0; i < firsts_.size(); ++i)
    if (directories_[owners_[i]] == directory)
      ranges.push_back({firsts_[i], i + 1 < firsts_.size() ? firsts_[i + 1] - 1 : UINT64_MAX});
  return ranges;
}

double Placement::share_of(const Uuid& directory) const {
  double share = 0;
  for (const auto& [first, last] : ranges_of(directory))
    share += (static_cast<double>(last - first) + 1) / static_cast<double>(kSpace);
  return share;
}

}  // namespace tplstore
