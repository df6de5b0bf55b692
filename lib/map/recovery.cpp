// Replay: frame by frame, record by record; nodes that an update needs are read as it asks.
#include "map/recovery.h"

#include <algorithm>
#include <cerrno>

#include "map/checkpoint.h"

namespace tplstore {
namespace {

// False when that is not what can happen now.
bool apply_next(MapState& state, MapLog& log, MapRecord& record, Recovery& recovery) {
  if (!state.allows(record)) return false;
  if (const auto* position = std::get_if<PositionRecord>(&record))
    recovery.journal_position = position->position;
  while (const auto missing = state.apply(record).missing) {
    state.install(0, *missing, read_node(log, *missing));
    ++recovery.loads;
  }
  return true;
}

void replay(MapState& state, Recovery& recovery, MapLog& log, const LogFrame& frame) {
  const bool is_open = frame.header.kind == static_cast<uint16_t>(FrameKind::kOpen);
  if (!is_open && frame.header.kind != static_cast<uint16_t>(FrameKind::kUpdates)) return;
  Decoder decoder(frame.payload, log.name());
  if (is_open) {
    recovery.journal = frame.header.name_bytes > 0 ? decode_journal_name(decoder) : JournalName();
    recovery.journal_position = 0;
  }
  while (!decoder.empty()) {
    MapRecord record = decode_record(decoder);
    if (!apply_next(state, log, record, recovery))
      fail(EIO, log.name(), "damaged: a record of the map log is impossible");
  }
  recovery.replayed_bytes += frame.payload.size();
}

}  // namespace

MapState recover(MapLog& log, const MapPointer& pointer, Recovery& recovery) {
  Checkpoint checkpoint = read_checkpoint(log, pointer.checkpoint_offset);
  MapState& state = checkpoint.state;
  recovery = {};
  recovery.first_current = state.current().number;
  recovery.journal = checkpoint.journal;
  recovery.journal_position = checkpoint.journal_position;
  recovery.end =
      log.scan(checkpoint.replay_from, std::max(pointer.clean_sequence, checkpoint.sequence),
               [&](const LogFrame& frame) { replay(state, recovery, log, frame); });
  // That of a life which has only begun to take the place of the one that was closed too.
  recovery.was_closed_cleanly =
      recovery.end.sequence == pointer.clean_sequence ||
      (pointer.closed_incarnation != 0 && recovery.end.incarnation == pointer.closed_incarnation);
  if (!recovery.was_closed_cleanly) state.note_swept(0, false);
  return std::move(state);
}

bool apply_kept(MapState& state, MapLog& log, std::vector<MapRecord> records, Recovery& recovery) {
  for (MapRecord& record : records)
    if (!apply_next(state, log, record, recovery)) return false;
  state.note_swept(0, false);
  return true;
}

}  // namespace tplstore
