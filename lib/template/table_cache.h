// The tables of many segments in few objects, beside the segments: what an import would have to
// open every segment for.
//
//   "tables/N":  | table | table | …     at most 1024
//   a table:     | name of the segment, 16 | blocks, 4 | reserved, 4 | hashes, 16 each |
//
// All of it is derived, and can be removed at any time. What is read is trusted with nothing: a
// table that is not what its segment is named by is passed over, with what stands behind it. Tables
// of segments that are gone stay until their object is written anew.
//
// Thread safety: one thread; several processes may have one each. Errors: none that the cache alone
// is to blame for; then it does less.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace tplstore {

inline constexpr size_t kTablesPerObject = 1024;

class TableCache {
 public:
  using Table = std::vector<Hash128>;
  // Of the segments that are there, in ascending order.
  TableCache(Backend& segments, const HashSecret& secret, const std::vector<Hash128>& names);

  // Gives the tables that are in it, each once, in any order.
  void read(const std::function<void(const Hash128& name, const Table& table)>& give);
  bool has(const Hash128& name) const { return known_.contains(name); }
  // One that was not in it.
  void add(const Hash128& name, const Table& table);
  // Makes it have what was added, if that is worth it, and what was in objects that are mostly gone
  // in fewer. The last call.
  void write();

 private:
  void read_object(const std::string& path,
                   const std::function<void(const Hash128& name, const Table& table)>& give);
  void write_object();

  Backend& segments_;
  const HashSecret secret_;
  const std::vector<Hash128>& names_;
  std::set<Hash128> known_;
  uint64_t last_number_ = 0;
  std::vector<std::string> replaced_;  // objects whose tables are in pending_ too
  ByteVector pending_;
  size_t pending_count_ = 0;
  size_t added_ = 0;
};

// Objects of tables that have one which is none of its segment, or end within one. Changes nothing.
std::vector<std::string> find_damaged_tables(Backend& segments, const HashSecret& secret);

}  // namespace tplstore
