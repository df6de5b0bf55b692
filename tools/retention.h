// Which versions of a volume a retention policy keeps, as users of restic and borg know it.
//
// Each rule by itself walks the versions from the newest to the oldest and keeps the first that it
// meets of each period (UTC hour, day, ISO week, month, year), until it has kept as many as it
// says. So a period without a version is skipped and not counted, and of a period that has several
// the newest one is kept. `keep_last` keeps the newest ones whatever their time. A version is kept
// when any rule keeps it. Without any rule everything is kept: nobody has said what may go.
//
// Newest goes by number, since numbers rise in the order of freezing while a clock may be set
// back; only the periods go by the time of freezing.
//
// Thread safety: pure functions. Throws nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tplstore {

struct RetentionRules {
  uint32_t keep_last = 0;
  uint32_t keep_hourly = 0;
  uint32_t keep_daily = 0;
  uint32_t keep_weekly = 0;
  uint32_t keep_monthly = 0;
  uint32_t keep_yearly = 0;
  bool keeps_named = false;  // all versions that have a name beside their number

  bool is_empty() const;  // no rule at all
};

struct RetentionCandidate {
  uint32_t number;     // no two alike
  int64_t created_ns;  // since 1970; any value
  bool has_name;
};

struct RetentionVerdict {
  uint32_t number;
  bool is_kept;
  // The rules that keep it, in this order: "last", "hourly", "daily", "weekly", "monthly",
  // "yearly", "named"; "no rule" alone when there is none. Empty when it is not kept.
  std::vector<std::string> reasons;
};

// One verdict for each candidate, oldest first, by number.
std::vector<RetentionVerdict> apply_retention(const RetentionRules& rules,
                                              std::vector<RetentionCandidate> candidates);

}  // namespace tplstore
