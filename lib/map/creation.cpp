// A new map is a log with one checkpoint.
#include "map/creation.h"

#include "base/units.h"
#include "map/checkpoint.h"
#include "map/tree_copy.h"

namespace tplstore {
namespace {

std::shared_ptr<MapLog> create_log(Backend& backend, const std::string& folder,
                                   const Uuid& volume) {
  std::shared_ptr<MapLog> log = MapLog::create(backend, folder, volume, 1);
  log->start_writing(MapLog::start());
  return log;
}

MapSnapshot first_snapshot(uint32_t current, uint32_t parent, uint64_t size_bytes) {
  MapSnapshot snapshot;
  snapshot.current.number = current;
  snapshot.current.parent = parent;
  snapshot.current.created_ns = now_unix_ns();
  snapshot.current.size_bytes = size_bytes;
  snapshot.current.set_own(0);
  snapshot.roots[current] = NodeRef();
  return snapshot;
}

// Writes the checkpoint and then the object "map".
void finish(Backend& backend, const std::string& folder, const Uuid& volume, MapLog& log,
            const MapSnapshot& snapshot, uint64_t live_bytes) {
  MapPointer pointer{};
  pointer.volume = volume;
  pointer.generation = log.generation();
  pointer.checkpoint_offset = CheckpointWriter(log).write(snapshot, log.position(), {}, live_bytes);
  log.sync();
  pointer.clean_sequence = log.position().sequence;
  const auto object = backend.create(map_pointer_name(folder), 0, Purpose::kMetadata);
  object->write(0, Superblock<MapPointer>(kMapPointerMagic).initial(pointer));
  object->sync();
}

}  // namespace

void create_map(Backend& backend, const std::string& folder, const Uuid& volume,
                uint64_t size_bytes) {
  const auto log = create_log(backend, folder, volume);
  finish(backend, folder, volume, *log, first_snapshot(1, 0, size_bytes), 0);
}

void create_fork_map(Backend& backend, const std::string& folder, const Uuid& fork,
                     const Uuid& parent, const VersionRecord& base,
                     const std::vector<SourceRow>& sources, const std::shared_ptr<MapLog>& from,
                     SpinningSharedMutex& mutex) {
  MapSnapshot snapshot = first_snapshot(base.number + 1, base.number, base.size_bytes);
  for (const SourceRow& row : sources)
    if (row.last < base.number) snapshot.sources.push_back(row);
  snapshot.sources.push_back({base.number, 0, parent});
  const auto log = create_log(backend, folder, fork);
  TreeCopier copier(from, log, mutex);
  snapshot.roots[snapshot.current.number] = copier.copy(base.root).copy;
  snapshot.current.foreign_blocks = copier.data_blocks();
  finish(backend, folder, fork, *log, snapshot, copier.written_bytes());
}

}  // namespace tplstore
