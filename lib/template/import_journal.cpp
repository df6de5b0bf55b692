// Records are appended as segments are published, each with its own checksum.
#include "template/import_journal.h"

#include <algorithm>

#include "base/names.h"
#include "base/units.h"
#include "template/manifest.h"
#include "template/store_identity.h"

namespace tplstore {
namespace {

uint64_t header_checksum(const ImportJournalHeader& header) {
  return checksum(bytes_of(header).first(offsetof(ImportJournalHeader, checksum)));
}

uint64_t record_checksum(const ImportJournalRecord& record, uint64_t offset) {
  return checksum(bytes_of(record).first(offsetof(ImportJournalRecord, checksum)), offset);
}

// Those that are whole, of what stands in a journal from `offset` on.
std::vector<Hash128> segments_of(Bytes records, uint64_t offset) {
  std::vector<Hash128> segments;
  for (; records.size() >= sizeof(ImportJournalRecord);
       records = records.subspan(sizeof(ImportJournalRecord)),
       offset += sizeof(ImportJournalRecord)) {
    ImportJournalRecord record;
    std::memcpy(&record, records.data(), sizeof record);
    if (record.magic == kJournalMagic && record.checksum == record_checksum(record, offset))
      segments.push_back(record.segment);
  }
  return segments;
}

uint64_t failure_checksum(const ImportJournalFailure& failure) {
  return checksum(bytes_of(failure.text));
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
  if (bytes->size() >= kJournalRecordsOffset) {
    ImportJournalFailure failure;
    std::memcpy(&failure, bytes->data() + sizeof(ImportJournalHeader), sizeof failure);
    if (failure.checksum == failure_checksum(failure))
      content.failure.assign(failure.text, strnlen(failure.text, sizeof failure.text));
    content.segments =
        segments_of(Bytes(*bytes).subspan(kJournalRecordsOffset), kJournalRecordsOffset);
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
  Encoder encoder;
  encoder.put(header);
  encoder.put(ImportJournalFailure{});  // it has not failed yet
  object_->write(0, encoder.bytes());   // within one sector, so there is no half of it
  object_->sync();
  durable_to_ = tail_;
  backend_.sync_folder("imports");
}

void ImportJournal::add(const Hash128& segment) {
  const Lock lock(mutex_);
  if (!known_.insert(segment).second) return;
  ImportJournalRecord record{kJournalMagic, segment, 0};
  record.checksum = record_checksum(record, tail_);
  object_->write(tail_, bytes_of(record));
  tail_ += sizeof record;
}

uint64_t ImportJournal::tail() {
  const Lock lock(mutex_);
  return tail_;
}

void ImportJournal::commit() {
  const uint64_t needed = tail();
  // Whoever waits here finds it done by then, or does it for all that came meanwhile.
  const Lock lock(sync_mutex_);
  if (durable_to_ >= needed) return;
  const uint64_t end = tail();
  object_->sync();
  durable_to_ = end;
}

void ImportJournal::tell_failure(std::string_view why) noexcept {
  ImportJournalFailure failure{};
  std::memcpy(failure.text, why.data(), std::min(why.size(), sizeof failure.text));
  failure.checksum = failure_checksum(failure);
  try {
    object_->write(sizeof(ImportJournalHeader), bytes_of(failure));
  } catch (const std::exception&) {
    // Then nobody is told but who has imported.
  }
}

OtherImports::OtherImports(Backend& backend, std::string own_name)
    : backend_(backend), own_name_(std::move(own_name)) {
  const auto names = backend.list("templates");
  templates_.insert(names.begin(), names.end());
}

// What cannot be read has ended, or is damaged: then what it has is stored again.
std::vector<Hash128> OtherImports::take_news() {
  std::vector<Hash128> news;
  for (const std::string& name : backend_.list("imports")) {
    if (name == own_name_ || !is_valid_name(name)) continue;
    try {
      take_journal(name, news);
    } catch (const Error&) {
    }
  }
  // Behind the journals: one that was gone by then has left a manifest.
  for (const std::string& name : backend_.list("templates")) {
    if (!is_valid_name(name) || !templates_.insert(name).second) continue;
    try {
      if (const auto manifest = load_manifest(backend_, name))
        for (const ManifestSegment& segment : manifest->segments) news.push_back(segment.name);
    } catch (const Error&) {
    }
  }
  return news;
}

void OtherImports::take_journal(const std::string& name, std::vector<Hash128>& news) {
  const auto journal = backend_.open(journal_path(name), Access::kRead, Purpose::kMetadata);
  uint64_t& read_to = read_to_.try_emplace(name, kJournalRecordsOffset).first->second;
  const uint64_t end =
      std::min(round_down(journal->size_bytes(), sizeof(ImportJournalRecord)), kJournalBytesMax);
  if (end < read_to) read_to = kJournalRecordsOffset;  // it was begun anew
  if (end <= read_to) return;
  ByteVector records(end - read_to);
  journal->read(read_to, records);
  const auto segments = segments_of(records, read_to);
  news.insert(news.end(), segments.begin(), segments.end());
  read_to = end;
}

void ImportJournal::remove() {
  backend_.remove(path_);
  backend_.sync_folder("imports");
}

}  // namespace tplstore
