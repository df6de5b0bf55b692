// The ring, written by one life and read by the next.
#include "map/update_journal.h"

#include <algorithm>

namespace tplstore {
namespace {

constexpr uint64_t kUpdateJournalMagic = 0x314a445055504c54;  // "TLPUPDJ1"

// In the log; the path follows, and zeroes up to a multiple of a record.
struct JournalNameBody {
  Uuid id;
  Uuid boot;
  uint64_t path_bytes;
  uint64_t reserved;
};
static_assert(sizeof(JournalNameBody) == 48);

uint64_t journal_sum(const JournalHeader& header) {
  constexpr size_t kBegin = offsetof(JournalHeader, magic);
  return checksum(bytes_of(header).subspan(kBegin, offsetof(JournalHeader, reserved) - kBegin));
}

uint64_t load_word(uint64_t& word) {
  return std::atomic_ref<uint64_t>(word).load(std::memory_order_acquire);
}

// Nothing where no journal can be.
JournalHeader* journal_header_in(MutableBytes memory) {
  const bool has_room = memory.size() > kJournalHeaderBytes && memory.size() % kRecordBytes == 0;
  return has_room ? reinterpret_cast<JournalHeader*>(memory.data()) : nullptr;
}

}  // namespace

ByteVector encode_journal_name(const JournalName& name) {
  Encoder to;
  if (!name.is_named()) return {};
  to.put(JournalNameBody{name.id, name.boot, name.path.size(), 0});
  to.put_bytes(as_bytes(name.path));
  to.bytes().resize(round_up(to.size(), kRecordBytes));
  return std::move(to.bytes());
}

JournalName decode_journal_name(Decoder& from) {
  const auto body = from.take<JournalNameBody>();
  if (body.path_bytes > kJournalPathBytesMax || body.id.is_nil())
    fail(EIO, from.object(), "damaged: it names a journal that cannot be");
  JournalName name{body.id, body.boot, from.take_text(body.path_bytes)};
  from.take_bytes(round_up(body.path_bytes, kRecordBytes) - body.path_bytes);
  return name;
}

void UpdateJournal::begin(std::unique_ptr<JournalMemory> memory, const Uuid& volume,
                          const JournalName& name) {
  const MutableBytes bytes = memory->bytes();
  header_ = journal_header_in(bytes);
  ensure(header_ != nullptr, "a journal's memory holds its header and whole records");
  ring_ = bytes.data() + kJournalHeaderBytes;
  ring_bytes_ = bytes.size() - kJournalHeaderBytes;
  *header_ = {0, kUpdateJournalMagic, volume, name.id, name.boot, ring_bytes_, {}, 0, 0};
  header_->checksum = journal_sum(*header_);
  at_ = end_ = released_ = whole_from_ = 0;
  memory_ = std::move(memory);
}

void UpdateJournal::copy_long(Bytes records) noexcept {
  const uint64_t part = std::min<uint64_t>(records.size(), ring_bytes_ - at_);
  std::memcpy(ring_ + at_, records.data(), part);
  std::memcpy(ring_, records.data() + part, records.size() - part);
  at_ = (at_ + records.size()) % ring_bytes_;
}

void UpdateJournal::raise_whole_from(uint64_t position) noexcept {
  if (position <= whole_from_) return;
  whole_from_ = position;
  if (header_ != nullptr) store(header_->whole_from, position);
}

void UpdateJournal::release(uint64_t position) noexcept {
  raise_whole_from(position);
  released_ = position;
  used_bytes_.store(end_ - released_, std::memory_order_relaxed);
}

std::optional<ByteVector> read_journal(JournalMemory& memory, const Uuid& volume,
                                       const JournalName& name, uint64_t from) {
  const MutableBytes bytes = memory.bytes();
  if (journal_header_in(bytes) == nullptr) return std::nullopt;
  JournalHeader& header = *journal_header_in(bytes);
  const uint64_t ring_bytes = bytes.size() - kJournalHeaderBytes;
  const bool is_it = header.magic == kUpdateJournalMagic &&
                     header.checksum == journal_sum(header) && header.volume == volume &&
                     header.id == name.id && header.boot == name.boot &&
                     header.ring_bytes == ring_bytes;
  const uint64_t end = load_word(header.end);
  const bool has_all = load_word(header.whole_from) <= from && from <= end &&
                       end - from <= ring_bytes && (end - from) % kRecordBytes == 0 &&
                       from % kRecordBytes == 0;
  if (!is_it || !has_all) return std::nullopt;
  if (from == end) return ByteVector();
  ByteVector records(end - from);
  const Bytes ring = bytes.subspan(kJournalHeaderBytes);
  const uint64_t at = from % ring_bytes;
  const uint64_t part = std::min<uint64_t>(records.size(), ring_bytes - at);
  std::memcpy(records.data(), ring.data() + at, part);
  std::memcpy(records.data() + part, ring.data(), records.size() - part);
  return records;
}

void spoil_journal(JournalMemory& memory) {
  if (JournalHeader* header = journal_header_in(memory.bytes()))
    std::atomic_ref<uint64_t>(header->whole_from).store(kJournalSpoilt, std::memory_order_release);
}

}  // namespace tplstore
