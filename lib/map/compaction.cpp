// Which trees are copied when, and what that makes of the trees in memory.
#include "map/compaction.h"

namespace tplstore {

Compaction::Draft::Draft(Backend& backend, std::string name)
    : backend_(backend), name_(std::move(name)) {
  backend_.remove(name_);
}

Compaction::Draft::~Draft() {
  if (is_kept_) return;
  try {
    backend_.remove(name_);
  } catch (const std::exception&) {
    // Opening the volume removes it too.
  }
}

Compaction::Compaction(Backend& backend, const std::string& folder, const Uuid& volume,
                       const std::shared_ptr<MapLog>& old, SpinningSharedMutex& mutex,
                       const LogOpening& opening)
    : draft_(backend, MapLog::object_name(folder, old->generation() + 1)),
      fresh_(MapLog::create(backend, folder, volume, old->generation() + 1)),
      copier_(old, fresh_, mutex) {
  fresh_->start_writing(MapLog::start(), Reserve::kDeletions, opening);
}

// What is nearest to a version of what is written: itself, when it was current in an earlier pass,
// or its parent.
const CopiedTree& Compaction::base_of(const Version& version) const {
  if (version.number == current_number_) return current_;
  const auto parent = versions_.find(version.parent);
  return parent == versions_.end() ? none_ : parent->second;
}

void Compaction::write(const std::vector<Version>& frozen, const Version& current) {
  for (const Version& version : frozen)
    if (!has_written(version.number))
      versions_[version.number] = copier_.copy(version.root, base_of(version));
  current_ = copier_.copy(current.root, base_of(current));
  current_number_ = current.number;
}

uint64_t Compaction::write_checkpoint(const std::vector<Version>& frozen, MapSnapshot& snapshot) {
  const VersionRecord& current = snapshot.current;
  write(frozen, {current.number, current.parent, current.root});
  for (const auto& [number, tree] : versions_) snapshot.roots[number] = tree.copy;
  snapshot.roots[current.number] = current_.copy;
  snapshot.live_bytes = copier_.written_bytes();
  return CheckpointWriter(*fresh_).write(snapshot, fresh_->position());
}

void Compaction::relocate(MapState& state, MapSnapshot& snapshot) {
  TreeCopier::Relocation relocation = copier_.plan_relocation(state.current_root(), current_);
  for (auto& [slot, fresh] : relocation.slots) *slot = std::move(fresh);
  for (const auto& [node, address] : relocation.nodes) {
    node->address = address;
    node->replaces_own = false;
  }
  state.note_compacted(snapshot);
}

}  // namespace tplstore
