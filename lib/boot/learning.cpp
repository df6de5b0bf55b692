// Which profile a boot belongs to, and what has become of its runs in the disk's map.
#include "boot/learning.h"

#include <algorithm>

#include "base/units.h"

namespace tplstore {
namespace {

constexpr uint64_t kOwnPart = 20;
constexpr int kTriesMax = 4;
constexpr uint64_t kBlocksAtOnce = 1 << 16;

// Whether enough of it is of versions past this one.
bool is_own(std::span<const ProfileRun> runs, uint32_t past) {
  return count_own_blocks(runs, past) * kOwnPart >= std::max<uint64_t>(1, count_blocks(runs));
}

// What there is of these runs for who has versions up to this one.
std::vector<ProfileRun> runs_up_to(uint32_t last, std::span<const ProfileRun> runs) {
  std::vector<ProfileRun> found;
  std::ranges::copy_if(runs, std::back_inserter(found), [last](const ProfileRun& run) {
    return run.source == kFromTemplate || run.source <= last;
  });
  return found;
}

// Whether runs belong to an ancestor, of those that it could have: enough is of its own versions.
bool belong_to(std::span<const BootAncestor> ancestors, size_t index,
               std::span<const ProfileRun> runs) {
  const uint32_t past = index + 1 < ancestors.size() ? ancestors[index + 1].last : 0;
  return is_own(runs_up_to(ancestors[index].last, runs), past);
}

// Who a boot belongs to that has too little of the volume itself; what is of those that are nearer
// goes. Nothing when nobody could have it.
std::optional<FoundProfile> find_owner(const BootDisk& disk, std::vector<ProfileRun>& boot) {
  const auto ancestors = disk.ancestors();
  for (size_t i = 0; i < ancestors.size(); ++i) {
    if (!belong_to(ancestors, i, boot)) continue;
    boot = runs_up_to(ancestors[i].last, boot);
    return FoundProfile{false, ancestors[i].volume};
  }
  if (!disk.template_uuid()) return std::nullopt;
  boot = runs_up_to(0, boot);
  return FoundProfile{true, *disk.template_uuid()};
}

// Visits the places of runs, some of them at a time; their `run` is the index among all.
template <typename Visit>
void visit_places(BootDisk& disk, std::span<const ProfileRun> runs, Visit visit) {
  std::vector<CellRun> some;
  std::vector<size_t> indices;
  uint64_t blocks = 0;
  const auto visit_some = [&] {
    disk.with_cells(some, [&](std::span<const CellPlace> places) {
      for (const CellPlace& place : places) visit(indices.at(place.run), place);
    });
    some.clear();
    indices.clear();
    blocks = 0;
  };
  for (size_t i = 0; i < runs.size(); ++i)
    for (uint32_t done = 0; done < runs[i].count;) {
      const auto count =
          static_cast<uint32_t>(std::min<uint64_t>(runs[i].count - done, kBlocksAtOnce - blocks));
      some.push_back({runs[i].source, runs[i].first + done, count});
      indices.push_back(i);
      done += count;
      blocks += count;
      if (blocks == kBlocksAtOnce) visit_some();
    }
  if (!some.empty()) visit_some();
}

// Versions' runs most of which the disk has otherwise by now.
void drop_dead_runs(Profile& profile, BootDisk& disk) {
  std::vector<uint64_t> mapped(profile.runs.size());
  visit_places(disk, profile.runs,
               [&](size_t run, const CellPlace& place) { mapped.at(run) += place.count; });
  size_t index = 0;
  std::erase_if(profile.runs, [&](const ProfileRun& run) {
    const uint64_t blocks = mapped[index++];
    return run.source != kFromTemplate && 2 * blocks < run.count;
  });
}

// Makes the hashes that are not known, of what can be read in memory; those who took it in there
// have verified it.
void add_hashes(Profile& profile, BootDisk& disk, CellMemory& memory, const HashSecret& secret) {
  if (profile.hashes.empty()) return;
  std::vector<size_t> begins;  // of each run's hashes
  size_t hash = 0;
  for (const ProfileRun& run : profile.runs) {
    begins.push_back(hash);
    hash += run.source == kFromTemplate ? run.count : 0;
  }
  ByteVector block(kBlockBytes);
  visit_places(disk, profile.runs, [&](size_t index, const CellPlace& place) {
    const ProfileRun& run = profile.runs[index];
    if (run.source != kFromTemplate) return;
    for (uint32_t i = 0; i < place.count; ++i) {
      Hash128& wanted = profile.hashes.at(begins[index] + (place.first + i - run.first));
      if (wanted != Hash128{}) continue;
      std::ranges::fill(block, std::byte{0});
      ReadPlan plan;
      plan.enter(memory.requests());
      place.file->plan_read(*place.source, uint64_t{place.block + i} * kBlockBytes, block, plan,
                            nullptr);
      // One that somebody is taking in is left as it was. No segment has blocks of zeroes.
      if (plan.size() == 0 && !is_zero(block)) wanted = content_hash(block, secret);
    }
  });
}

// Whether the volume is there still: its removal takes the header before the rest.
bool has_header(Backend& store, const NumberedObject& profile) {
  return std::ranges::binary_search(store.list(profile.folder), "header");
}

using Cell = std::pair<CellFileKey, uint32_t>;

std::set<Cell> cells_of(std::span<const PackPiece> pieces) {
  std::set<Cell> cells;
  for (const PackPiece& piece : pieces)
    for (uint32_t i = 0; i < piece.count; ++i) cells.emplace(piece.key(), piece.first + i);
  return cells;
}

// Cells, each once and none of `but`, in the profile's order; and what the disk calls them.
struct Pieces {
  std::vector<PackPiece> pieces;
  std::vector<CellRun> runs;
};

Pieces pieces_of(BootDisk& disk, std::span<const ProfileRun> runs, const std::set<Cell>& but) {
  Pieces found;
  std::set<Cell> seen;
  visit_places(disk, runs, [&](size_t run, const CellPlace& place) {
    bool is_open = false;
    for (uint32_t i = 0; i < place.count; ++i) {
      const Cell cell(place.key, place.block + i);
      if (but.contains(cell) || seen.size() == kPackBlocksMax || !seen.insert(cell).second) {
        is_open = false;
        continue;
      }
      if (!is_open) {
        found.pieces.push_back(PackPiece::of(place.key, place.block + i, 0));
        found.runs.push_back({runs[run].source, place.first + i, 0});
        is_open = true;
      }
      ++found.pieces.back().count;
      ++found.runs.back().count;
    }
  });
  return found;
}

bool has_most(const PackDescription& pack, const std::vector<PackPiece>& pieces) {
  const std::set<Cell> there = cells_of(pack.pieces);
  const std::set<Cell> wanted = cells_of(pieces);
  const auto missing =
      std::ranges::count_if(wanted, [&](const Cell& cell) { return !there.contains(cell); });
  return 8 * static_cast<uint64_t>(missing) <= wanted.size();
}

// Blocks of a run that the disk has in one place, verified.
void read_cells(BootDisk& disk, const CellRun& run, MutableBytes into, CellMemory& memory) {
  uint64_t read_blocks = 0;
  disk.with_cells({&run, 1}, [&](std::span<const CellPlace> places) {
    for (const CellPlace& place : places) {
      const MutableBytes blocks = into.subspan((place.first - run.first) * kBlockBytes,
                                               uint64_t{place.count} * kBlockBytes);
      {
        ReadPlan plan;
        plan.enter(memory.requests());
        place.file->plan_read(*place.source, uint64_t{place.block} * kBlockBytes, blocks, plan,
                              nullptr);
        plan.run();
      }
      for (uint32_t i = 0; i < place.count; ++i) {
        const MutableBytes block = blocks.subspan(size_t{i} * kBlockBytes, kBlockBytes);
        if (!place.source->are_sound(place.block + i, block))
          place.source->read_sound(place.block + i, block);
      }
      read_blocks += place.count;
    }
  });
  if (read_blocks != run.count) fail(ESTALE, disk.name(), "has changed while it was read");
}

}  // namespace

NumberedObject FoundProfile::profile() const {
  return is_of_template ? template_profile(owner) : volume_profile(owner);
}

NumberedObject FoundProfile::pack() const {
  return is_of_template ? template_pack(owner) : volume_pack(owner);
}

FoundProfile find_profile(Backend& store, BootDisk& disk, const IsKnownProfile& is_known) {
  FoundProfile found;
  const auto has_profile = [&](bool is_of_template, const Uuid& owner) {
    found = {is_of_template, owner};
    found.stored = load_profile(store, found.profile(), owner);
    return !found.stored.profile.runs.empty();
  };
  if (!disk.volume().is_nil() && has_profile(false, disk.volume())) return found;
  const auto ancestors = disk.ancestors();
  for (size_t i = 0; i < ancestors.size(); ++i) {
    if (!has_profile(false, ancestors[i].volume)) continue;
    // It may have become another one since.
    if (belong_to(ancestors, i, found.stored.profile.runs)) return found;
  }
  if (!disk.template_uuid()) return {false, disk.volume()};
  found = {true, *disk.template_uuid()};
  const auto numbers = is_known ? found.profile().numbers(store) : std::vector<uint64_t>();
  if (!numbers.empty() && is_known(found.owner, numbers.back()))
    found.stored.number = numbers.back();
  else
    has_profile(true, found.owner);
  return found;
}

std::optional<FoundProfile> learn_boot(Backend& store, BootDisk& disk, BootDisk* origin,
                                       std::span<const ProfileRun> boot, uint64_t blocks_max,
                                       CellMemory& memory, const HashSecret& secret) {
  if (boot.empty() || disk.volume().is_nil()) return std::nullopt;
  uint64_t size_bytes = disk.size_bytes();
  for (const ProfileRun& run : boot) size_bytes = std::max(size_bytes, run.end() * kBlockBytes);
  const NumberedObject own_object = volume_profile(disk.volume());
  const uint32_t not_own = disk.ancestors().empty() ? 0 : disk.ancestors().front().last;
  for (int tries = 0; tries < kTriesMax; ++tries) {
    FoundProfile found{false, disk.volume(), load_profile(store, own_object, disk.volume())};
    Profile& profile = found.stored.profile;
    Profile before = profile;
    if (!profile.runs.empty()) {
      std::erase_if(profile.runs,
                    [&](const ProfileRun& run) { return run.end() > blocks_of(size_bytes); });
      if (!disk.is_gone()) drop_dead_runs(profile, disk);
      if (!is_own(profile.runs, not_own)) profile.runs.clear();  // it is as what it came from again
    }
    std::vector<ProfileRun> runs(boot.begin(), boot.end());
    const bool is_own_boot = !profile.runs.empty() || is_own(boot, not_own);
    if (!is_own_boot) {
      const auto owner = find_owner(disk, runs);
      if (!owner) return std::nullopt;
      own_object.remove_all(store);
      found = *owner;
      found.stored = load_profile(store, found.profile(), found.owner);
      before = profile;
    }
    profile.owner = found.owner;
    profile.size_bytes = is_own_boot ? size_bytes : std::max(profile.size_bytes, size_bytes);
    if (!merge_boot(profile, runs, blocks_max, now_unix_ns())) return std::nullopt;
    take_hashes(profile, before);
    try {
      if (origin != nullptr) add_hashes(profile, *origin, memory, secret);
    } catch (const Error&) {
      // The template has been removed: they are not known.
    }
    const NumberedObject object = found.profile();
    if (!found.is_of_template && !has_header(store, object)) return std::nullopt;
    if (!put_profile(store, object, found.stored.number, profile)) continue;
    if (!found.is_of_template && !has_header(store, object)) {
      object.remove_all(store);
      return std::nullopt;
    }
    ++found.stored.number;
    return found;
  }
  return std::nullopt;  // others have learnt enough
}

std::set<CellFileKey> files_of(BootDisk& disk, std::span<const ProfileRun> runs) {
  std::set<CellFileKey> keys;
  visit_places(disk, runs, [&](size_t, const CellPlace& place) { keys.insert(place.key); });
  return keys;
}

bool make_pack_of(Backend& store, BootDisk& disk, const FoundProfile& found,
                  const HashSecret& secret, CellMemory& memory,
                  const std::function<bool()>& interrupted) {
  std::set<Cell> packed;
  if (!found.is_of_template && disk.template_uuid())
    if (const auto pack =
            open_pack(store, template_pack(*disk.template_uuid()), *disk.template_uuid(), secret))
      packed = cells_of(pack->description().pieces);
  const Pieces cells = pieces_of(disk, found.stored.profile.runs, packed);
  const auto pack = open_pack(store, found.pack(), found.owner, secret);
  if (pack && has_most(pack->description(), cells.pieces)) return false;
  // A version whose freezing is lost in a crash is another one the next time.
  disk.settle();
  const bool is_made = make_pack(store, found.pack(), found.owner, cells.pieces, secret,
                                 [&](size_t piece, uint32_t skip, MutableBytes into) {
                                   if (interrupted())
                                     fail(EINTR, disk.name(), "its pack is not made now");
                                   CellRun run = cells.runs[piece];
                                   run.first += skip;
                                   run.count = static_cast<uint32_t>(into.size() / kBlockBytes);
                                   read_cells(disk, run, into, memory);
                                 });
  if (is_made && !found.is_of_template && !has_header(store, found.pack()))
    found.pack().remove_all(store);
  return is_made;
}

CachedRuns count_cached(BootDisk& disk, std::span<const ProfileRun> runs, CellMemory& memory) {
  CachedRuns counted;
  visit_places(disk, runs, [&](size_t, const CellPlace& place) {
    counted.bytes += uint64_t{place.count} * kBlockBytes;
    counted.cached_bytes += memory.count_there(*place.file, place.block, place.count) * kBlockBytes;
  });
  return counted;
}

}  // namespace tplstore
