// Objects are never changed: small ones are written together as a new one, and removed then.
#include "template/table_cache.h"

#include <algorithm>
#include <charconv>

#include "template/segment.h"

namespace tplstore {
namespace {

struct TableHead {
  Hash128 name;
  uint32_t block_count;
  uint32_t reserved;
};
static_assert(sizeof(TableHead) == 24);

constexpr uint64_t kObjectBytesMax =
    kTablesPerObject * (sizeof(TableHead) + kSegmentBlocksMax * sizeof(Hash128));
// Opening so many segments is no trouble.
constexpr size_t kWorthIt = 32;

std::string object_path(uint64_t number) { return fmt::format("tables/{}", number); }

}  // namespace

TableCache::TableCache(Backend& segments, const HashSecret& secret,
                       const std::vector<Hash128>& names)
    : segments_(segments), secret_(secret), names_(names) {}

void TableCache::read(const std::function<void(const Hash128&, const Table&)>& give) {
  std::vector<uint64_t> numbers;
  for (const std::string& name : segments_.list("tables")) {
    uint64_t number = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (error == std::errc() && end == name.data() + name.size()) numbers.push_back(number);
  }
  for (const uint64_t number : numbers) {
    last_number_ = std::max(last_number_, number);
    try {
      read_object(object_path(number), give);
    } catch (const Error&) {
      // Its segments are opened instead.
    }
  }
}

void TableCache::read_object(const std::string& path,
                             const std::function<void(const Hash128&, const Table&)>& give) {
  const auto content = segments_.get(path, kObjectBytesMax);
  if (!content) return;
  Bytes rest = *content;
  std::vector<Bytes> kept;
  Table table;
  while (rest.size() >= sizeof(TableHead)) {
    TableHead head;
    std::memcpy(&head, rest.data(), sizeof head);
    const uint64_t bytes = uint64_t{head.block_count} * sizeof(Hash128);
    if (head.block_count == 0 || head.block_count > kSegmentBlocksMax ||
        rest.size() - sizeof head < bytes)
      break;
    const Bytes hashes = rest.subspan(sizeof head, bytes);
    if (content_hash(hashes, secret_) != head.name) break;
    if (std::ranges::binary_search(names_, head.name) && known_.insert(head.name).second) {
      table.resize(head.block_count);
      std::memcpy(table.data(), hashes.data(), bytes);
      give(head.name, table);
      kept.push_back(rest.first(sizeof head + bytes));
    }
    rest = rest.subspan(sizeof head + bytes);
  }
  if (kept.empty()) {
    segments_.remove(path);
    return;
  }
  // One that is full of tables that are needed stays as it is.
  if (rest.empty() && kept.size() >= kTablesPerObject / 2) return;
  if (pending_count_ + kept.size() > kTablesPerObject) return;
  replaced_.push_back(path);
  for (const Bytes& one : kept) pending_.insert(pending_.end(), one.begin(), one.end());
  pending_count_ += kept.size();
}

void TableCache::add(const Hash128& name, const Table& table) {
  const TableHead head{name, static_cast<uint32_t>(table.size()), 0};
  const Bytes head_bytes = bytes_of(head), hashes = std::as_bytes(std::span(table));
  pending_.insert(pending_.end(), head_bytes.begin(), head_bytes.end());
  pending_.insert(pending_.end(), hashes.begin(), hashes.end());
  ++added_;
  if (++pending_count_ == kTablesPerObject) write_object();
}

void TableCache::write() {
  if (added_ >= kWorthIt || replaced_.size() > 8) write_object();
}

void TableCache::write_object() {
  try {
    // Another import may have taken the number.
    while (pending_count_ > 0 && !segments_.put_new(object_path(++last_number_), pending_)) {
    }
    for (const std::string& path : replaced_) segments_.remove(path);
  } catch (const Error&) {
    // No room, or no right to write: the next import opens the segments again.
  }
  replaced_.clear();
  pending_.clear();
  pending_count_ = 0;
  added_ = 0;
}

}  // namespace tplstore
