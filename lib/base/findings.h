// What a check of a store finds: one line for each thing that is not as it should be, and what is
// lost by it. Every layer adds what is its own to look at (lock/lock_check.h, map/map_check.h, …);
// store/store_check.h puts it together.
//
// A *fault* is what a sound store does not have: damage, and what interrupted work has left behind.
// A *note* is what whoever reads the result should know: what could not be looked at, and why.
//
// Stores may be hostile, so there is an end to how much is kept; all is counted.
//
// Thread safety: none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"

namespace tplstore {

// What mends a fault. All but kNone do it without guessing, and without taking anything that
// somebody could still want.
enum class Repair {
  kNone,
  kHeader,   // write the slots of a volume's header anew, from the sound one
  kReopen,   // open the volume for writing, which recovers it and gives back space, and close it
  kCells,    // give back cells, and files, that no version of the volume has
  kPin,      // pin the version that a fork needs
  kClaims,   // remove claims that no living process of this host has
  kFolder,   // remove what creating or removing a volume has left
  kCollect,  // collect garbage
  kDerived,  // remove what is derived, and is made again when it is needed
  kTables,   // write the tables of a template's segments anew
  kSegment,  // mend a segment from a copy in this host's tier
  kGcLock,   // make the lock of imports and gc, which is empty
};

struct LostRange {
  std::string disk;  // "vm1@3", "vm1" for what is current, "template/debian12"
  uint64_t offset = 0;
  uint64_t length = 0;
};

struct Finding {
  std::string subject;  // "volume vm1", "template debian12", "store"
  std::string object;   // of the store; may be empty
  std::string problem;  // one line: what, why, and what to do where that is not --repair
  bool is_fault = true;
  Repair repair = Repair::kNone;
  Uuid volume = {};                  // whose it is; nil where it is no volume's
  std::vector<LostRange> lost = {};  // as far as that is known
  uint64_t lost_more = 0;            // ranges that are not listed
  bool is_repaired = false;

  std::string text() const;  // what stands on its line
};

class Findings {
 public:
  static constexpr size_t kKeptMax = 10000;
  static constexpr size_t kLostMax = 100;  // of one fault

  // What is added from here on is about this.
  void begin(const std::string& subject, const Uuid& volume = {});
  const std::string& subject() const { return subject_; }

  // Returns it for what is lost to be added; until the next one is added.
  Finding& fault(const std::string& object, const std::string& problem,
                 Repair repair = Repair::kNone);
  Finding& fault(const Error& error, Repair repair = Repair::kNone);
  void note(const std::string& object, const std::string& problem);
  void add_lost(Finding& fault, const LostRange& range);

  // What was added since there were so many is dropped.
  size_t count() const { return all_.size(); }
  void drop_from(size_t count);

  std::vector<Finding>& all() { return all_; }
  const std::vector<Finding>& all() const { return all_; }
  uint64_t faults() const { return faults_; }  // also those that are not kept

 private:
  Finding& add(Finding finding);

  std::string subject_;
  Uuid volume_;
  std::vector<Finding> all_;
  Finding beyond_;  // one that is not kept
  uint64_t faults_ = 0;
};

}  // namespace tplstore
