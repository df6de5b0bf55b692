// Replay: frame by frame, record by record; nodes that an update needs are read as it asks.
#include "map/recovery.h"

#include <algorithm>
#include <cerrno>

namespace tplstore {
namespace {

void replay(Recovered& to, MapLog& log, const LogFrame& frame) {
  if (frame.header.kind != static_cast<uint16_t>(FrameKind::kUpdates)) return;
  Decoder decoder(frame.payload, log.name());
  while (!decoder.empty()) {
    MapRecord record = decode_record(decoder);
    if (!to.state.allows(record))
      fail(EIO, log.name(), "damaged: a record of the map log is impossible");
    if (std::holds_alternative<FreezeRecord>(record))
      to.replayed_versions.insert(to.state.current().number);
    if (const auto* collect = std::get_if<CollectRecord>(&record))
      to.replayed_versions.erase(collect->version);
    while (const auto missing = to.state.apply(record).missing) {
      to.state.install(0, *missing, read_node(log, *missing));
      ++to.loads;
    }
  }
  to.replayed_bytes += frame.payload.size();
}

}  // namespace

Recovered recover(MapLog& log, const MapPointer& pointer) {
  Recovered recovered;
  Checkpoint checkpoint = read_checkpoint(log, pointer.checkpoint_offset);
  recovered.state = std::move(checkpoint.state);
  recovered.end =
      log.scan(checkpoint.replay_from, std::max(pointer.clean_sequence, checkpoint.sequence),
               [&](const LogFrame& frame) { replay(recovered, log, frame); });
  recovered.was_closed_cleanly = recovered.end.sequence == pointer.clean_sequence;
  if (!recovered.was_closed_cleanly) recovered.state.note_swept(0, false);
  return recovered;
}

}  // namespace tplstore
