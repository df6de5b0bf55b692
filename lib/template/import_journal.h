// The journal of an unfinished import: which segments it has published or refers to.
//
// The object "imports/NAME" exists from the start of an import until after the template's manifest
// is published. An import that was interrupted leaves it behind, so that gc keeps the segments and
// the next import of that name finds them. A journal beside a manifest of the same name is the
// remainder of an import that was complete, and means nothing.
//
//   | header, 224 bytes | why it failed, 288 bytes | record | record | ...     32 bytes each
//
// Records are appended and synced before the segment they name is published, so no segment of an
// interrupted import is ever without its record. Other imports see them when they are appended.
// Every record carries its own checksum: what a crash left half-written is skipped.
//
// While its lock is held the import is running; else it has failed, and may have said why.
//
// Thread safety: add() and commit() of an ImportJournal; else none, one import's. Holding an
// ImportJournal is holding its lock, so that a name is imported once at a time.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/mutex.h"

namespace tplstore {

inline constexpr uint64_t kJournalMagic = 0x316a706d696c7074;  // "tplimpj1"
inline constexpr uint32_t kJournalFormat = 2;
inline constexpr uint64_t kJournalRecordsOffset = 512;
inline constexpr uint64_t kJournalBytesMax = uint64_t{1} << 30;

struct ImportJournalHeader {
  uint64_t magic;
  uint32_t format;
  uint32_t reserved;
  uint64_t size_bytes;  // of the image being imported
  int64_t started_ns;
  Uuid store;
  char name[136];  // of the template, padded with zeroes
  uint8_t reserved_too[32];
  uint64_t checksum;  // of the 216 bytes before it
};
static_assert(sizeof(ImportJournalHeader) == 224);
static_assert(offsetof(ImportJournalHeader, size_bytes) == 16);
static_assert(offsetof(ImportJournalHeader, store) == 32);
static_assert(offsetof(ImportJournalHeader, name) == 48);
static_assert(offsetof(ImportJournalHeader, checksum) == 216);

struct ImportJournalFailure {
  uint64_t checksum;  // of the text
  char text[280];     // padded with zeroes
};
static_assert(sizeof(ImportJournalHeader) + sizeof(ImportJournalFailure) == kJournalRecordsOffset);

struct ImportJournalRecord {
  uint64_t magic;
  Hash128 segment;
  uint64_t checksum;  // of the 24 bytes before it, with the record's offset as seed
};
static_assert(sizeof(ImportJournalRecord) == 32 && offsetof(ImportJournalRecord, segment) == 8 &&
              offsetof(ImportJournalRecord, checksum) == 24);

std::string journal_path(const std::string& template_name);

// What a journal says, as far as it can be read.
struct ImportJournalContent {
  uint64_t size_bytes = 0;  // both 0 when the header never became durable
  int64_t started_ns = 0;
  std::string failure;  // empty when nobody could say
  std::vector<Hash128> segments;
};
// Nothing when there is none. EIO when it is another template's or store's, EINVAL when it has
// another format.
std::optional<ImportJournalContent> load_journal(Backend& backend,
                                                 const std::string& template_name);

// What other imports have come to refer to, as their journals and templates tell.
class OtherImports {
 public:
  OtherImports(Backend& backend, std::string own_name);

  // The segments that were named since the last call, or since this was made; at the first call all
  // that unfinished imports name. Not all of them need be published yet, or ever.
  std::vector<Hash128> take_news();

 private:
  void take_journal(const std::string& name, std::vector<Hash128>& news);

  Backend& backend_;
  const std::string own_name_;
  std::map<std::string, uint64_t> read_to_;  // of journals
  std::set<std::string> templates_;          // that are known
};

class ImportJournal {
 public:
  // Begins a journal, or continues the one that an interrupted import left; durable on return.
  // EBUSY when this name is being imported.
  ImportJournal(Backend& backend, const std::string& template_name, uint64_t image_bytes);

  void add(const Hash128& segment);
  // Makes everything that was added before the call durable; several threads share a sync.
  void commit();
  // For people, and for as long as it is not continued. Does not throw.
  void tell_failure(std::string_view why) noexcept;
  // Removes the journal durably; the last call.
  void remove();

 private:
  uint64_t tail() EXCLUDES(mutex_);

  Backend& backend_;
  const std::string path_;
  std::unique_ptr<HeldLock> lock_;
  std::unique_ptr<Object> object_;
  Mutex mutex_;
  std::set<Hash128> known_ GUARDED_BY(mutex_);
  uint64_t tail_ GUARDED_BY(mutex_) = kJournalRecordsOffset;
  Mutex sync_mutex_;
  uint64_t durable_to_ GUARDED_BY(sync_mutex_) = 0;
};

}  // namespace tplstore
