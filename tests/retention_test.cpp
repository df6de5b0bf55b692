#include "retention.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <ctime>
#include <functional>
#include <map>
#include <random>

#include "base/bytes.h"

namespace tplstore::retention_test {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;
constexpr int64_t kHourNs = 3600 * kSecondNs;
constexpr int64_t kDayNs = 24 * kHourNs;

// "2026-01-31 23:59:59" in UTC.
int64_t at(const char* text) {
  std::tm parts{};
  REQUIRE(strptime(text, "%Y-%m-%d %H:%M:%S", &parts) != nullptr);
  return int64_t{timegm(&parts)} * kSecondNs;
}

// Versions 1, 2, … frozen at these times.
std::vector<RetentionCandidate> frozen_at(const std::vector<const char*>& times) {
  std::vector<RetentionCandidate> candidates;
  for (const char* time : times)
    candidates.push_back({static_cast<uint32_t>(candidates.size() + 1), at(time), false});
  return candidates;
}

// "2 last daily; 3 last": what is kept and why.
std::string kept(const RetentionRules& rules, const std::vector<RetentionCandidate>& candidates) {
  std::string text;
  for (const RetentionVerdict& verdict : apply_retention(rules, candidates)) {
    CHECK(verdict.is_kept == !verdict.reasons.empty());
    if (!verdict.is_kept) continue;
    text += (text.empty() ? "" : "; ") + std::to_string(verdict.number);
    for (const std::string& reason : verdict.reasons) text += " " + reason;
  }
  return text;
}

}  // namespace

TEST_CASE("the last ones are kept whatever their time") {
  const auto versions = frozen_at(
      {"2026-03-01 10:00:00", "2026-03-01 10:00:01", "2020-03-01 10:00:02", "2026-03-01 10:00:03"});
  CHECK(kept({.keep_last = 2}, versions) == "3 last; 4 last");
  CHECK(kept({.keep_last = 9}, versions) == "1 last; 2 last; 3 last; 4 last");
}

TEST_CASE("of each period the newest version is kept, and empty periods do not count") {
  const auto versions = frozen_at({
      "2026-03-01 23:59:59",  // 1
      "2026-03-04 00:00:00",  // 2
      "2026-03-04 09:59:59",  // 3
      "2026-03-04 10:00:00",  // 4
      "2026-03-04 10:30:00",  // 5
      "2026-03-04 11:00:00",  // 6
      "2026-03-09 11:00:00",  // 7
  });
  CHECK(kept({.keep_hourly = 3}, versions) == "5 hourly; 6 hourly; 7 hourly");
  CHECK(kept({.keep_hourly = 4}, versions) == "3 hourly; 5 hourly; 6 hourly; 7 hourly");
  CHECK(kept({.keep_daily = 2}, versions) == "6 daily; 7 daily");
  CHECK(kept({.keep_daily = 10}, versions) == "1 daily; 6 daily; 7 daily");
  // 1 March was a Sunday, 9 March a Monday.
  CHECK(kept({.keep_weekly = 10}, versions) == "1 weekly; 6 weekly; 7 weekly");
  CHECK(kept({.keep_monthly = 10}, versions) == "7 monthly");
}

TEST_CASE("rules work each by itself and a version may have several reasons") {
  const auto versions = frozen_at(
      {"2025-12-31 12:00:00", "2026-01-01 12:00:00", "2026-01-02 12:00:00", "2026-01-02 13:00:00"});
  CHECK(kept({.keep_last = 1,
              .keep_hourly = 1,
              .keep_daily = 2,
              .keep_weekly = 1,
              .keep_monthly = 2,
              .keep_yearly = 1},
             versions) == "1 monthly; 2 daily; 4 last hourly daily weekly monthly yearly");
}

TEST_CASE("years and months end where UTC says") {
  const auto versions = frozen_at(
      {"2024-02-29 23:59:59", "2024-03-01 00:00:00", "2024-12-31 23:59:59", "2025-01-01 00:00:00"});
  CHECK(kept({.keep_yearly = 5}, versions) == "3 yearly; 4 yearly");
  CHECK(kept({.keep_monthly = 5}, versions) == "1 monthly; 2 monthly; 3 monthly; 4 monthly");
  // March of one year is not March of another.
  const auto marches = frozen_at({"2024-03-01 00:00:00", "2025-03-01 00:00:00"});
  CHECK(kept({.keep_monthly = 5}, marches) == "1 monthly; 2 monthly");
}

TEST_CASE("an ISO week goes from Monday to Sunday across the end of a year") {
  // Monday 30 December 2024 to Sunday 5 January 2025 are week 1 of 2025.
  const auto versions = frozen_at({
      "2024-12-29 23:59:59",  // 1, week 52
      "2024-12-30 00:00:00",  // 2
      "2024-12-31 23:59:59",  // 3
      "2025-01-01 00:00:00",  // 4
      "2025-01-05 23:59:59",  // 5
      "2025-01-06 00:00:00",  // 6, week 2
  });
  CHECK(kept({.keep_weekly = 5}, versions) == "1 weekly; 5 weekly; 6 weekly");
  // Week 1 of 2024 and of 2025 have the same number.
  const auto first_weeks = frozen_at({"2024-01-03 00:00:00", "2025-01-03 00:00:00"});
  CHECK(kept({.keep_weekly = 5}, first_weeks) == "1 weekly; 2 weekly");
}

TEST_CASE("a clock that was set back does not keep a period twice") {
  const auto versions = frozen_at({
      "2026-03-02 10:00:00",  // 1
      "2026-03-03 10:00:00",  // 2
      "2026-03-02 11:00:00",  // 3, after the clock was set back
      "2026-03-03 09:00:00",  // 4
      "2026-03-01 09:00:00",  // 5, and again
  });
  CHECK(kept({.keep_daily = 3}, versions) == "3 daily; 4 daily; 5 daily");
  CHECK(kept({.keep_daily = 2}, versions) == "4 daily; 5 daily");
  CHECK(kept({.keep_last = 1}, versions) == "5 last");
}

TEST_CASE("times before 1970 and at the ends of what a time can be have periods too") {
  const auto versions = frozen_at(
      {"1969-12-30 23:59:59", "1969-12-31 00:00:00", "1969-12-31 23:59:59", "1970-01-01 00:00:00"});
  CHECK(kept({.keep_daily = 9}, versions) == "1 daily; 3 daily; 4 daily");
  CHECK(kept({.keep_yearly = 9}, versions) == "3 yearly; 4 yearly");
  CHECK(kept({.keep_weekly = 9}, versions) == "4 weekly");
  const RetentionRules all{
      .keep_hourly = 9, .keep_daily = 9, .keep_weekly = 9, .keep_monthly = 9, .keep_yearly = 9};
  CHECK(kept(all, {{1, INT64_MIN, false}, {2, INT64_MAX, false}}) ==
        "1 hourly daily weekly monthly yearly; 2 hourly daily weekly monthly yearly");
}

TEST_CASE("named versions are kept in addition, and count for the other rules as any other") {
  std::vector<RetentionCandidate> versions =
      frozen_at({"2026-03-01 10:00:00", "2026-03-02 10:00:00", "2026-03-03 10:00:00"});
  versions[0].has_name = true;
  versions[2].has_name = true;
  CHECK(kept({.keep_last = 1, .keeps_named = true}, versions) == "1 named; 3 last named");
  CHECK(kept({.keep_last = 2}, versions) == "2 last; 3 last");
  CHECK(kept({.keeps_named = true}, versions) == "1 named; 3 named");
}

TEST_CASE("without a rule everything is kept") {
  CHECK(RetentionRules{}.is_empty());
  CHECK_FALSE(RetentionRules{.keeps_named = true}.is_empty());
  CHECK_FALSE(RetentionRules{.keep_yearly = 1}.is_empty());
  CHECK(kept({}, frozen_at({"2026-03-01 10:00:00", "2026-03-02 10:00:00"})) ==
        "1 no rule; 2 no rule");
  CHECK(apply_retention({.keep_last = 3}, {}).empty());
}

TEST_CASE("the order of the candidates does not matter, and verdicts come oldest first") {
  auto versions = frozen_at({"2026-03-01 10:00:00", "2026-03-02 10:00:00", "2026-03-03 10:00:00"});
  std::reverse(versions.begin(), versions.end());
  CHECK(kept({.keep_last = 2}, versions) == "2 last; 3 last");
  const auto verdicts = apply_retention({.keep_last = 2}, versions);
  REQUIRE(verdicts.size() == 3);
  CHECK(verdicts[0].number == 1);
  CHECK_FALSE(verdicts[0].is_kept);
}

TEST_CASE("random versions get the verdicts of a reference that works with calendar texts") {
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const std::pair<const char*, const char*> kPeriods[] = {{"hourly", "%Y-%m-%d %H"},
                                                          {"daily", "%Y-%m-%d"},
                                                          {"weekly", "%G-%V"},
                                                          {"monthly", "%Y-%m"},
                                                          {"yearly", "%Y"}};
  for (int round = 0; round < 300; ++round) {
    std::vector<RetentionCandidate> versions;
    int64_t now = at("2023-11-15 00:00:00") + static_cast<int64_t>(random() % 1000) * kDayNs;
    const int64_t step = round % 3 == 0 ? kHourNs : round % 3 == 1 ? kDayNs : 40 * kDayNs;
    uint32_t number = 0;
    for (uint64_t i = random() % 60; i > 0; --i) {
      number += static_cast<uint32_t>(random() % 3 + 1);
      now += static_cast<int64_t>(random() % static_cast<uint64_t>(step));
      if (random() % 10 == 0) now -= static_cast<int64_t>(random() % 3) * step;
      versions.push_back({number, now, random() % 5 == 0});
    }
    const auto count = [&] { return random() % 2 == 0 ? 0 : static_cast<uint32_t>(random() % 8); };
    const RetentionRules rules{count(), count(), count(),          count(),
                               count(), count(), random() % 2 == 0};
    const uint32_t counts[] = {rules.keep_hourly, rules.keep_daily, rules.keep_weekly,
                               rules.keep_monthly, rules.keep_yearly};

    std::map<uint32_t, std::vector<std::string>> expected;
    for (size_t i = 0; i < versions.size(); ++i)
      if (versions.size() - i <= rules.keep_last) expected[versions[i].number].push_back("last");
    for (size_t period = 0; period < 5; ++period) {
      std::map<std::string, uint32_t> newest;  // of each period, rising as the versions do
      for (const RetentionCandidate& version : versions) {
        const std::time_t seconds = version.created_ns / kSecondNs;
        char text[64];
        std::strftime(text, sizeof text, kPeriods[period].second, std::gmtime(&seconds));
        newest[text] = version.number;
      }
      std::vector<uint32_t> numbers;
      for (const auto& [text, last] : newest) numbers.push_back(last);
      std::sort(numbers.begin(), numbers.end(), std::greater<>());
      if (numbers.size() > counts[period]) numbers.resize(counts[period]);
      for (const uint32_t kept_one : numbers) expected[kept_one].push_back(kPeriods[period].first);
    }
    for (const RetentionCandidate& version : versions)
      if (rules.keeps_named && version.has_name) expected[version.number].push_back("named");
    if (rules.is_empty())
      for (const RetentionCandidate& version : versions) expected[version.number] = {"no rule"};

    std::vector<RetentionCandidate> shuffled = versions;
    std::shuffle(shuffled.begin(), shuffled.end(), random);
    const auto verdicts = apply_retention(rules, shuffled);
    REQUIRE(verdicts.size() == versions.size());
    for (size_t i = 0; i < verdicts.size(); ++i) {
      REQUIRE(verdicts[i].number == versions[i].number);
      REQUIRE(verdicts[i].is_kept == expected.contains(versions[i].number));
      REQUIRE(verdicts[i].reasons == expected[versions[i].number]);
    }
  }
}

}  // namespace tplstore::retention_test
