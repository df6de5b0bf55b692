// One walk over all trees together, and one over what each version changed.
#include "map/map_check.h"

#include <algorithm>
#include <cerrno>

#include "base/names.h"

namespace tplstore {
namespace {

// Of those that are told of one by one.
constexpr size_t kUnreadableMax = 1000;
constexpr size_t kFreedMax = 1000;

// Gives those of these cells that are free.
template <typename Visit>
void for_each_free(const std::vector<FreeRange>& free, const FreeRange& cells, const Visit& visit) {
  const uint64_t end = cells.first + cells.count;
  // Joined ranges do not overlap, and a whole file's is the only one of its file.
  auto at = std::ranges::upper_bound(
      free, std::pair(cells.source, cells.first), {},
      [](const FreeRange& range) { return std::pair(range.source, range.first); });
  if (at != free.begin() && std::prev(at)->source == cells.source) --at;
  for (; at != free.end() && at->source == cells.source && at->first < end; ++at) {
    if (at->is_whole_file()) return visit(cells);
    const uint64_t begin = std::max(at->first, cells.first);
    const uint64_t stop = std::min(at->first + at->count, end);
    if (begin < stop) visit({cells.source, static_cast<uint32_t>(stop - begin), begin});
  }
}

}  // namespace

MapCheck::MapCheck(Backend& backend, const std::string& folder, const Uuid& volume,
                   std::string name, Findings& findings)
    : backend_(backend), folder_(folder), name_(std::move(name)), findings_(findings) {
  try {
    open(volume);
  } catch (const Error& error) {
    map_.reset();
    findings_.fault(error);
  }
}

void MapCheck::open(const Uuid& volume) {
  if (!MapPointerObject::has_both_slots(backend_, folder_))
    findings_.fault(folder_ + "/map", "one of its two slots fails its checksum", Repair::kReopen);
  map_ = VolumeMap::open(backend_, folder_, volume, Access::kRead);
  // Removals that the log tells of are decided again, as whoever opens the volume does.
  try {
    map_->decide_removals();
  } catch (const Error&) {
    has_unreadable_ = true;  // the walk says what it is
  }
  current_ = map_->ask(&MapState::current_record);
  versions_ = map_->versions();
  map_->ask([this](const MapState& state) {
    base_ = state.table().base();
    removed_files_ = state.table().removed_files;
    // Of a fork that was flattened only its first versions tell where it began.
    const auto look = [&](const VersionRecord& version) {
      if (state.table().find(version.parent) == nullptr) base_ = std::max(base_, version.parent);
    };
    look(state.current());
    for (const auto& [number, version] : state.table().all()) look(version);
  });
  free_ = map_->update_free_ranges([](FreeRanges& free) {
    free.cut();
    free.commit();
    return free.outstanding();
  });
  join_free_ranges(free_);
}

bool MapCheck::is_known_source(uint32_t source) const {
  if (source <= base_ || source == current_.number || removed_files_.contains(source)) return true;
  const auto at = std::ranges::lower_bound(versions_, source, {}, &VersionRecord::number);
  return at != versions_.end() && at->number == source;
}

bool MapCheck::is_free_file(uint32_t source) const {
  return std::ranges::any_of(free_, [source](const FreeRange& range) {
    return range.source == source && range.is_whole_file();
  });
}

void MapCheck::run(const VisitCells& visit) {
  counts_.clear();
  unreadable_.clear();
  freed_.clear();
  freed_but_mapped_ = 0;
  check_versions();
  map_->visit_cells(
      [&](uint32_t region, const std::vector<FreeRange>& cells) {
        check_cells(cells);
        visit(region, cells);
      },
      [&](const BlockRange& blocks, const Error& error) {
        has_unreadable_ = true;
        if (unreadable_.size() < kUnreadableMax) unreadable_.push_back({blocks, error.what()});
      });
  tell_unreadable();
  check_books();
}

// --- each version by itself

void MapCheck::check_versions() {
  std::vector<const VersionRecord*> all;
  for (const VersionRecord& version : versions_) all.push_back(&version);
  all.push_back(&current_);
  for (const VersionRecord* version : all) {
    const bool has_parent =
        version->parent != 0 && std::ranges::any_of(all, [&](const auto* other) {
          return other->number == version->parent && other->number < version->number;
        });
    const uint64_t end = blocks_of(version->size_bytes);
    uint64_t impossible = 0, outside = 0;
    const auto look = [&](const Run& run) {
      if (run.source == kSourceUnmapped) return;
      if (run.first + run.count > end) outside += run.count;
      if (run.source == kSourceZero) return;
      const bool is_possible = run.source <= version->number && is_known_source(run.source) &&
                               (!has_parent || run.source > version->parent);
      if (!is_possible) impossible += run.count;
    };
    try {
      map_->visit_changes(version->number, look);
    } catch (const Error&) {
      has_unreadable_ = true;  // likewise
    }
    if (impossible > 0)
      findings_.fault(folder_ + "/map",
                      fmt::format("{} blocks of version {} come from versions that it cannot have "
                                  "them from",
                                  impossible, version->number));
    if (outside > 0)
      findings_.fault(folder_ + "/map", fmt::format("{} blocks of version {} are beyond its end",
                                                    outside, version->number));
  }
}

// --- all of them together

void MapCheck::check_cells(const std::vector<FreeRange>& cells) {
  for (const FreeRange& range : cells) {
    counts_[range.source] += range.count;
    for_each_free(free_, range, [this](const FreeRange& free) {
      freed_but_mapped_ += free.count;
      if (freed_.size() < kFreedMax) freed_.push_back(free);
    });
  }
}

void MapCheck::check_books() {
  if (freed_but_mapped_ > 0) {
    Finding& fault = findings_.fault(
        folder_ + "/map",
        fmt::format("{} blocks that versions have count as free: they are lost when the volume is "
                    "opened for writing next, so read it first (VOLUME@VERSION, or a copy)",
                    freed_but_mapped_));
    for (const FreeRange& range : freed_) add_lost(fault, range.source, {range.first, range.count});
  }
  if (has_unreadable_) return;
  const auto look = [&](uint32_t version, uint64_t expected) {
    const auto found = counts_.find(version);
    const uint64_t count = found == counts_.end() ? 0 : found->second;
    if (count == expected) return;
    findings_.fault(folder_ + "/map", fmt::format("data.{} has {} blocks that versions have, but "
                                                  "{} are counted",
                                                  version, count, expected));
  };
  for (const VersionRecord& version : versions_) look(version.number, version.file_blocks);
  look(current_.number, current_.file_blocks);
  for (const auto& [version, blocks] : removed_files_) look(version, blocks);
}

// --- what is lost

// Current, and the versions that somebody can see, with what people call them.
template <typename Visit>
void MapCheck::for_each_disk(const Visit& visit) {
  for (const VersionRecord& version : versions_)
    if (!version.is_hidden()) visit(version, fmt::format("{}@{}", name_, version.number));
  visit(current_, name_);
}

void MapCheck::add_lost(Finding& fault, uint32_t source, const BlockRange& blocks) {
  for_each_disk([&](const VersionRecord& version, const std::string& disk) {
    const uint64_t end = std::min(blocks.first + blocks.count, blocks_of(version.size_bytes));
    if (blocks.first >= end) return;
    RunList runs;
    try {
      map_->find(version.number, {blocks.first, end - blocks.first}, runs);
    } catch (const Error&) {
      return;  // which is lost as well, and told
    }
    for (size_t i = 0; i < runs.size(); ++i)
      if (runs[i].source == source)
        findings_.add_lost(fault, {disk, runs[i].first * kBlockBytes, runs[i].count * kBlockBytes});
  });
}

void MapCheck::tell_unreadable() {
  for (const Unreadable& one : unreadable_) {
    Finding& fault = findings_.fault(folder_ + "/map", one.why);
    for_each_disk([&](const VersionRecord& version, const std::string& disk) {
      const uint64_t end =
          std::min(one.blocks.first + one.blocks.count, blocks_of(version.size_bytes));
      if (one.blocks.first >= end) return;
      RunList runs;
      try {
        map_->find(version.number, {one.blocks.first, 1}, runs);
      } catch (const Error&) {
        findings_.add_lost(
            fault, {disk, one.blocks.first * kBlockBytes, (end - one.blocks.first) * kBlockBytes});
      }
    });
  }
}

}  // namespace tplstore
