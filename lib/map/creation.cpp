// A new map is a log with one checkpoint.
#include "map/creation.h"

#include "base/units.h"
#include "map/checkpoint.h"
#include "map/map_pointer.h"
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
            MapSnapshot& snapshot) {
  const uint64_t offset = CheckpointWriter(log).write(snapshot, log.position());
  log.sync();
  MapPointerObject::create(backend, folder, volume, log, offset);
}

}  // namespace

void create_map(Backend& backend, const std::string& folder, const Uuid& volume,
                uint64_t size_bytes) {
  const auto log = create_log(backend, folder, volume);
  MapSnapshot snapshot = first_snapshot(1, 0, size_bytes);
  finish(backend, folder, volume, *log, snapshot);
}

uint64_t create_fork_map(Backend& backend, const std::string& folder, const Uuid& fork,
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
  snapshot.live_bytes = copier.written_bytes();
  finish(backend, folder, fork, *log, snapshot);
  return snapshot.current.foreign_blocks;
}

}  // namespace tplstore
