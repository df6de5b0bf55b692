// The whole copy is read and compared with its hashes before anything is written.
#include "template/segment_repair.h"

#include "template/segment.h"

namespace tplstore {

bool repair_segment(Backend& origin, const Hash128& name, uint32_t block_count,
                    const HashSecret& secret, SegmentCopies& copies) {
  const auto copy = copies.open(name, block_count);
  if (!copy || copy->table().size() != block_count || !copy->begin()) return false;
  ByteVector blocks(uint64_t{block_count} * kBlockBytes);
  std::exception_ptr error;
  try {
    copy->object().read(0, blocks);
  } catch (const Error&) {
    error = std::current_exception();
  }
  const bool is_sound = !error && find_damaged_blocks(blocks, 0, copy->table(), secret).empty();
  using Outcome = SegmentCopy::Outcome;
  copy->end(error      ? Outcome::kFailed
            : is_sound ? Outcome::kRead
                       : Outcome::kDamaged,
            blocks.size(), error);
  if (!is_sound) return false;
  SegmentBuilder builder(secret);
  for (uint32_t i = 0; i < block_count; ++i)
    builder.add(Bytes(blocks).subspan(uint64_t{i} * kBlockBytes, kBlockBytes), copy->table()[i]);
  if (builder.name() != name) return false;
  builder.mend(origin);
  return true;
}

}  // namespace tplstore
