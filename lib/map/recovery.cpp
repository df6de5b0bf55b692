// Replay: frame by frame, record by record; nodes that an update needs are read as it asks.
#include "map/recovery.h"

#include <algorithm>
#include <cerrno>

#include "map/checkpoint.h"

namespace tplstore {
namespace {

void replay(MapState& state, Recovery& recovery, MapLog& log, const LogFrame& frame) {
  if (frame.header.kind != static_cast<uint16_t>(FrameKind::kUpdates)) return;
  Decoder decoder(frame.payload, log.name());
  while (!decoder.empty()) {
    MapRecord record = decode_record(decoder);
    if (!state.allows(record))
      fail(EIO, log.name(), "damaged: a record of the map log is impossible");
    if (std::holds_alternative<FreezeRecord>(record))
      recovery.replayed_versions.insert(state.current().number);
    if (const auto* collect = std::get_if<CollectRecord>(&record))
      recovery.replayed_versions.erase(collect->version);
    while (const auto missing = state.apply(record).missing) {
      state.install(0, *missing, read_node(log, *missing));
      ++recovery.loads;
    }
  }
  recovery.replayed_bytes += frame.payload.size();
}

}  // namespace

MapState recover(MapLog& log, const MapPointer& pointer, Recovery& recovery) {
  Checkpoint checkpoint = read_checkpoint(log, pointer.checkpoint_offset);
  MapState& state = checkpoint.state;
  recovery.end =
      log.scan(checkpoint.replay_from, std::max(pointer.clean_sequence, checkpoint.sequence),
               [&](const LogFrame& frame) { replay(state, recovery, log, frame); });
  recovery.was_closed_cleanly = recovery.end.sequence == pointer.clean_sequence;
  if (!recovery.was_closed_cleanly) state.note_swept(0, false);
  return std::move(state);
}

}  // namespace tplstore
