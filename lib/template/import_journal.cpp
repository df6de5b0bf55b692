// Records are appended as segments are published, each with its own checksum.
#include "template/import_journal.h"

#include <algorithm>

#include "base/units.h"
#include "template/store_identity.h"

namespace tplstore {
namespace {

uint64_t header_checksum(const ImportJournalHeader& header) {
  return checksum(bytes_of(header).first(offsetof(ImportJournalHeader, checksum)));
}

uint64_t record_checksum(const ImportJournalRecord& record, uint64_t offset) {
  return checksum(bytes_of(record).first(offsetof(ImportJournalRecord, checksum)), offset);
}

}  // namespace

std::string journal_path(const std::string& template_name) { return "imports/" + template_name; }

std::optional<ImportJournalContent> load_journal(Backend& backend,
                                                 const std::string& template_name) {
  const auto bytes = backend.get(journal_path(template_name), kJournalBytesMax);
  if (!bytes) return std::nullopt;
  ImportJournalContent content;
  if (bytes->size() >= sizeof(ImportJournalHeader)) {
    ImportJournalHeader header;
    std::memcpy(&header, bytes->data(), sizeof header);
    if (header.magic == kJournalMagic && header.checksum == header_checksum(header)) {
      if (header.format != kJournalFormat)
        fail(EINVAL, journal_path(template_name),
             "has format {}, this program reads format {}: use the tplstore that made it",
             header.format, kJournalFormat);
      const std::string_view name(header.name, strnlen(header.name, sizeof header.name));
      if (name != template_name || header.store != load_identity(backend).uuid)
        fail(EIO, journal_path(template_name),
             "damaged: it is the journal of another template or store; 'tplstore template rm {}' "
             "removes it",
             template_name);
      content.size_bytes = header.size_bytes;
      content.started_ns = header.started_ns;
    }
  }
  for (uint64_t offset = kJournalRecordsOffset;
       offset + sizeof(ImportJournalRecord) <= bytes->size();
       offset += sizeof(ImportJournalRecord)) {
    ImportJournalRecord record;
    std::memcpy(&record, bytes->data() + offset, sizeof record);
    if (record.magic == kJournalMagic && record.checksum == record_checksum(record, offset))
      content.segments.push_back(record.segment);
  }
  return content;
}

ImportJournal::ImportJournal(Backend& backend, const std::string& template_name,
                             uint64_t image_bytes)
    : backend_(backend), path_(journal_path(template_name)) {
  try {
    object_ = backend_.create(path_, 0, Purpose::kMetadata);
  } catch (const Error& error) {
    if (error.code() != EEXIST) throw;
    object_ = backend_.open(path_, Access::kWrite, Purpose::kMetadata);
  }
  lock_ = backend_.try_lock(path_, LockMode::kExclusive);
  if (!lock_) fail(EBUSY, template_name, "this template is being imported by another process");
  if (const auto content = load_journal(backend_, template_name))
    known_.insert(content->segments.begin(), content->segments.end());
  tail_ =
      std::max(kJournalRecordsOffset, round_up(object_->size_bytes(), sizeof(ImportJournalRecord)));

  ImportJournalHeader header{};
  header.magic = kJournalMagic;
  header.format = kJournalFormat;
  header.size_bytes = image_bytes;
  header.started_ns = now_unix_ns();
  header.store = load_identity(backend_).uuid;
  ensure(template_name.size() < sizeof header.name, "the name of a template is short");
  std::memcpy(header.name, template_name.data(), template_name.size());
  header.checksum = header_checksum(header);
  object_->write(0, bytes_of(header));  // within one sector, so there is no half of it
  object_->sync();
  backend_.sync_folder("imports");
}

void ImportJournal::add(const Hash128& segment) {
  if (known_.insert(segment).second) pending_.push_back(segment);
}

void ImportJournal::commit() {
  if (pending_.empty()) return;
  Encoder encoder;
  for (const Hash128& segment : pending_) {
    ImportJournalRecord record{kJournalMagic, segment, 0};
    record.checksum = record_checksum(record, tail_ + encoder.size());
    encoder.put(record);
  }
  object_->write(tail_, encoder.bytes());
  object_->sync();
  tail_ += encoder.size();
  pending_.clear();
}

void ImportJournal::remove() {
  backend_.remove(path_);
  backend_.sync_folder("imports");
}

}  // namespace tplstore
