// Binary multiples of bytes, and RFC 3339 in UTC.
#include "base/units.h"

#include <cerrno>
#include <charconv>
#include <chrono>
#include <ctime>

#include "base/error.h"
#include "base/text.h"

namespace tplstore {

uint64_t parse_size(std::string_view what, std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  const auto refuse = [&]() {
    fail(EINVAL, std::string(what), "'{}' is not a size: use for instance 10G, 512M or 4096",
         excerpt(text));
  };
  if (error != std::errc() || end == text.data()) refuse();
  unsigned shift = 0;
  if (!unit.empty()) {
    const size_t power = std::string_view("BKMGTP").find(
        static_cast<char>(unit[0] >= 'a' ? unit[0] - 'a' + 'A' : unit[0]));
    const std::string_view rest = unit.substr(1);
    if (power == std::string_view::npos || !(rest.empty() || (power > 0 && rest == "iB"))) refuse();
    shift = static_cast<unsigned>(power) * 10;
  }
  if (number > (uint64_t{INT64_MAX} >> shift)) refuse();
  return number << shift;
}

std::string format_size(uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  size_t power = 0;
  while (value >= 1023.95 && power < 6) {
    value /= 1024;
    ++power;
  }
  return fmt::format("{:.1f} {}iB", value, "BKMGTPE"[power]);
}

namespace {

struct DurationUnit {
  char letter;
  int64_t seconds;
};
constexpr DurationUnit kDurationUnits[] = {
    {'w', int64_t{7} * 86400}, {'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}};
constexpr int64_t kDurationMax_s = int64_t{200} * 365 * 86400;

}  // namespace

int64_t parse_duration_s(std::string_view what, std::string_view text) {
  int64_t number = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit(stop, static_cast<size_t>(text.data() + text.size() - stop));
  if (error == std::errc() && number >= 0)
    for (const DurationUnit& known : kDurationUnits) {
      const bool is_it =
          unit.empty() ? known.letter == 's' : unit.size() == 1 && unit[0] == known.letter;
      if (is_it && number <= kDurationMax_s / known.seconds) return number * known.seconds;
    }
  fail(EINVAL, std::string(what), "'{}' is not a time like 90s, 5m, 2h, 7d or 4w", excerpt(text));
}

std::string format_duration(int64_t seconds) {
  for (const DurationUnit& unit : kDurationUnits)
    if (seconds != 0 && unit.letter != 'w' && seconds % unit.seconds == 0)
      return fmt::format("{}{}", seconds / unit.seconds, unit.letter);
  return "0";
}

std::string format_time(int64_t unix_ns) {
  const std::time_t seconds = unix_ns / 1'000'000'000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

std::optional<int64_t> parse_time(std::string_view text) {
  std::tm parts{};
  const std::string copy(text);
  const char* end = ::strptime(copy.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  if (end == nullptr || *end != '\0') return std::nullopt;
  int64_t unix_ns = 0;
  if (__builtin_mul_overflow(int64_t{::timegm(&parts)}, int64_t{1'000'000'000}, &unix_ns))
    return std::nullopt;
  if (format_time(unix_ns) != text) return std::nullopt;
  return unix_ns;
}

int64_t now_unix_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

int64_t since_boot_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace tplstore
