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

// The numbers of all objects.
std::vector<uint64_t> object_numbers(Backend& segments) {
  std::vector<uint64_t> numbers;
  for (const std::string& name : segments.list("tables")) {
    uint64_t number = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (error == std::errc() && end == name.data() + name.size()) numbers.push_back(number);
  }
  return numbers;
}

// Gives each table of an object that is what its segment is named by, with all of its bytes; what
// is behind one that is not.
Bytes for_each_table(Bytes rest, const HashSecret& secret,
                     const std::function<void(const Hash128&, Bytes hashes, Bytes all)>& give) {
  while (rest.size() >= sizeof(TableHead)) {
    TableHead head;
    std::memcpy(&head, rest.data(), sizeof head);
    const uint64_t bytes = uint64_t{head.block_count} * sizeof(Hash128);
    if (head.block_count == 0 || head.block_count > kSegmentBlocksMax ||
        rest.size() - sizeof head < bytes)
      break;
    const Bytes hashes = rest.subspan(sizeof head, bytes);
    if (content_hash(hashes, secret) != head.name) break;
    give(head.name, hashes, rest.first(sizeof head + bytes));
    rest = rest.subspan(sizeof head + bytes);
  }
  return rest;
}

}  // namespace

TableCache::TableCache(Backend& segments, const HashSecret& secret,
                       const std::vector<Hash128>& names)
    : segments_(segments), secret_(secret), names_(names) {}

void TableCache::read(const std::function<void(const Hash128&, const Table&)>& give) {
  for (const uint64_t number : object_numbers(segments_)) {
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
  std::vector<Bytes> kept;
  Table table;
  const Bytes rest =
      for_each_table(*content, secret_, [&](const Hash128& name, Bytes hashes, Bytes all) {
        if (!std::ranges::binary_search(names_, name) || !known_.insert(name).second) return;
        table.resize(hashes.size() / sizeof(Hash128));
        std::memcpy(table.data(), hashes.data(), hashes.size());
        give(name, table);
        kept.push_back(all);
      });
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

std::vector<std::string> find_damaged_tables(Backend& segments, const HashSecret& secret) {
  std::vector<std::string> damaged;
  for (const uint64_t number : object_numbers(segments)) {
    const std::string path = object_path(number);
    try {
      const auto content = segments.get(path, kObjectBytesMax);
      if (content && !for_each_table(*content, secret, [](const Hash128&, Bytes, Bytes) {}).empty())
        damaged.push_back(path);
    } catch (const Error&) {
      damaged.push_back(path);
    }
  }
  return damaged;
}

}  // namespace tplstore
