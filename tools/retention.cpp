// Each rule is a number of versions and a function from a version to its period.
#include "retention.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <unordered_set>

namespace tplstore {
namespace {

using std::chrono::floor;
using Days = std::chrono::sys_days;

std::chrono::sys_time<std::chrono::nanoseconds> time_of(const RetentionCandidate& candidate) {
  return std::chrono::sys_time<std::chrono::nanoseconds>(
      std::chrono::nanoseconds(candidate.created_ns));
}

Days day_of(const RetentionCandidate& candidate) {
  return floor<std::chrono::days>(time_of(candidate));
}

std::chrono::year_month_day date_of(const RetentionCandidate& candidate) {
  return std::chrono::year_month_day(day_of(candidate));
}

// Each of these tells the periods of one rule apart, as numbers.

int64_t own_period(const RetentionCandidate& candidate) { return candidate.number; }

int64_t hour_of(const RetentionCandidate& candidate) {
  return floor<std::chrono::hours>(time_of(candidate)).time_since_epoch().count();
}

int64_t day_number(const RetentionCandidate& candidate) {
  return day_of(candidate).time_since_epoch().count();
}

// ISO weeks begin on Mondays, also across the end of a year.
int64_t week_of(const RetentionCandidate& candidate) {
  constexpr Days kSomeMonday(std::chrono::year(1970) / 1 / 5);
  return floor<std::chrono::weeks>(day_of(candidate) - kSomeMonday).count();
}

int64_t month_of(const RetentionCandidate& candidate) {
  const auto date = date_of(candidate);
  return int64_t{int{date.year()}} * 12 + unsigned{date.month()};
}

int64_t year_of(const RetentionCandidate& candidate) { return int{date_of(candidate).year()}; }

struct Rule {
  const char* reason;
  uint32_t count;
  int64_t (*period)(const RetentionCandidate&);
};

std::array<Rule, 6> counting_rules(const RetentionRules& rules) {
  return {{{"last", rules.keep_last, own_period},
           {"hourly", rules.keep_hourly, hour_of},
           {"daily", rules.keep_daily, day_number},
           {"weekly", rules.keep_weekly, week_of},
           {"monthly", rules.keep_monthly, month_of},
           {"yearly", rules.keep_yearly, year_of}}};
}

}  // namespace

bool RetentionRules::is_empty() const {
  const auto rules = counting_rules(*this);
  return !keeps_named &&
         std::all_of(rules.begin(), rules.end(), [](const Rule& rule) { return rule.count == 0; });
}

std::vector<RetentionVerdict> apply_retention(const RetentionRules& rules,
                                              std::vector<RetentionCandidate> candidates) {
  std::sort(candidates.begin(), candidates.end(),
            [](const auto& a, const auto& b) { return a.number < b.number; });
  std::vector<RetentionVerdict> verdicts;
  verdicts.reserve(candidates.size());
  for (const RetentionCandidate& candidate : candidates)
    verdicts.push_back({candidate.number, false, {}});

  for (const Rule& rule : counting_rules(rules)) {
    // All periods met, not the last one only: with a clock that was set back one comes up again.
    std::unordered_set<int64_t> met;
    for (size_t i = candidates.size(); i-- > 0 && met.size() < rule.count;)
      if (met.insert(rule.period(candidates[i])).second)
        verdicts[i].reasons.emplace_back(rule.reason);
  }
  const bool has_rules = !rules.is_empty();
  for (size_t i = 0; i < candidates.size(); ++i) {
    RetentionVerdict& verdict = verdicts[i];
    if (rules.keeps_named && candidates[i].has_name) verdict.reasons.emplace_back("named");
    if (!has_rules) verdict.reasons.emplace_back("no rule");
    verdict.is_kept = !verdict.reasons.empty();
  }
  return verdicts;
}

}  // namespace tplstore
