// What is done with many copies at once, in the thread of who asks for it.
#include <algorithm>

#include "backend/open_backend.h"
#include "template/segment.h"
#include "tier/tier.h"

namespace tplstore {
namespace {

constexpr const char* kRebalanceLock = "rebalance.lock";

std::string text_of(TierDirectory::Fill result) {
  switch (result) {
    case TierDirectory::Fill::kNoRoom:
      return "there is no room, and nothing there is unread for long enough";
    case TierDirectory::Fill::kReadOnly:
      return "its file system is read-only";
    default:
      return "it cannot be used now";
  }
}

bool is_there(TierDirectory::Fill result) {
  return result == TierDirectory::Fill::kFilled || result == TierDirectory::Fill::kThere;
}

}  // namespace

// What a keeper would have done, where there is none.
std::shared_ptr<const Tier::Layout> Tier::prepare() {
  if (!has_threads_) {
    look_at_table();
    open_directories();
  }
  return layout();
}

TierStatus Tier::look() {
  const auto layout = prepare();
  for (const auto& [uuid, directory] : layout->directories) directory->list();
  return status();
}

Tier::WarmResult Tier::warm(const std::vector<WantedSegment>& segments, const Progress& progress) {
  const auto layout = prepare();
  WarmResult result;
  uint64_t done_bytes = 0, total_bytes = 0;
  for (const WantedSegment& wanted : segments)
    total_bytes += segment_object_bytes(wanted.block_count);
  for (const WantedSegment& wanted : segments) {
    progress(done_bytes, total_bytes);
    std::optional<ByteVector> bytes;
    const auto targets = targets_of(*layout, wanted.name);
    std::string why = targets.empty() ? "no directory has its place" : "";
    for (TierDirectory* directory : targets) {
      try {
        const auto filled = directory->fill(wanted, [&] {
          if (!bytes) bytes = world_->read_origin(wanted);
          return *bytes;
        });
        if (filled == TierDirectory::Fill::kFilled) {
          ++result.filled_segments;
          result.filled_bytes += segment_object_bytes(wanted.block_count);
        }
        if (!is_there(filled))
          why = fmt::format("{}: {}", directory->status().entry.path, text_of(filled));
      } catch (const Error& error) {
        why = error.what();
      }
    }
    if (!why.empty()) result.missing.push_back({wanted.name, why});
    done_bytes += segment_object_bytes(wanted.block_count);
  }
  progress(done_bytes, total_bytes);
  return result;
}

Tier::MoveResult Tier::move_copies(bool only_counts, const Progress& progress) {
  struct Move {
    TierDirectory* from;
    Hash128 name;
  };
  const auto layout = prepare();
  MoveResult result;
  std::vector<Move> moves;
  for (const auto& [uuid, directory] : layout->directories) {
    if (directory->entry(*layout->table).kind == TierEntry::Kind::kLocal) continue;
    const auto names = directory->list();
    if (!names) continue;  // what is in it is lost, or swept when it is back
    for (const Hash128& name : *names) {
      const Uuid* owner = layout->table->placement.at(name.high);
      if (owner != nullptr && *owner == uuid) continue;
      moves.push_back({directory.get(), name});
    }
    result.bytes += directory->status().bytes_out_of_place;
  }
  result.segments = moves.size();
  if (only_counts) return result;
  uint64_t done = 0;
  for (const Move& move : moves) {
    progress(result.bytes * done++ / moves.size(), result.bytes);
    const Uuid* owner = layout->table->placement.at(move.name.high);
    auto moved = TierDirectory::Fill::kNoRoom;
    std::string why;
    if (owner != nullptr) {
      TierDirectory& to = *layout->directories.at(*owner);
      try {
        moved = to.fill({move.name, 0}, [&] {
          auto bytes = move.from->read_whole(move.name);
          return bytes ? std::move(*bytes) : world_->read_origin({move.name, 0});
        });
        why = fmt::format("{}: {}", to.status().entry.path, text_of(moved));
      } catch (const Error& error) {
        why = error.what();
      }
    }
    if (!is_there(moved) && moved != TierDirectory::Fill::kNoRoom) {
      if (std::ranges::count(result.problems, why) == 0) result.problems.push_back(why);
      continue;
    }
    move.from->remove(move.name);
    ++(is_there(moved) ? result.moved_segments : result.dropped_segments);
  }
  progress(result.bytes, result.bytes);
  return result;
}

Tier::MoveResult Tier::rebalance(bool only_counts, const Progress& progress) {
  const auto folder = open_backend(state_folder_, {});
  folder->put_new(kRebalanceLock, {});
  const auto lock = folder->try_lock(kRebalanceLock, LockMode::kExclusive);
  if (!lock) fail(EBUSY, state_folder_.string(), "another process is rebalancing this tier");
  look_at_table();
  const auto table = prepare()->table;
  if (!table) return {};
  MoveResult result = move_copies(only_counts, progress);
  if (only_counts || !result.problems.empty()) return result;
  TierTableChange change(state_folder_, world_->options.identity.uuid, world_->options.host);
  // With another table there is more to move.
  if (change.table.generation == table->generation && table->before) {
    change.table.finish_move();
    change.save();
  }
  look_at_table();
  return result;
}

uint64_t Tier::sweep() {
  uint64_t removed = 0;
  const auto layout = prepare();
  for (const auto& [uuid, directory] : layout->directories) removed += directory->sweep();
  return removed;
}

Tier::CheckResult Tier::check(const Progress& progress) {
  CheckResult result;
  const auto layout = prepare();
  uint64_t total_bytes = 0, done_bytes = 0;
  std::vector<std::pair<TierDirectory*, Hash128>> copies;
  for (const auto& [uuid, directory] : layout->directories) {
    const auto names = directory->list();
    if (!names) continue;
    for (const Hash128& name : *names) copies.emplace_back(directory.get(), name);
    total_bytes += directory->status().bytes;
  }
  for (const auto& [directory, name] : copies) {
    progress(std::min(done_bytes, total_bytes), total_bytes);
    const uint64_t damaged = directory->status().damaged;
    if (const auto bytes = directory->read_whole(name)) done_bytes += bytes->size();
    result.damaged += directory->status().damaged - damaged;
    ++result.segments;
  }
  progress(total_bytes, total_bytes);
  return result;
}

std::optional<ByteVector> Tier::sound_copy(const Hash128& name) {
  const auto layout = prepare();
  if (!layout->table) return {};
  for (const Uuid& uuid : layout->table->places_of(name))
    if (const auto directory = layout->directories.find(uuid);
        directory != layout->directories.end())
      if (auto bytes = directory->second->read_whole(name)) return bytes;
  return {};
}

}  // namespace tplstore
