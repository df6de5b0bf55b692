// Sizes and times as people write them. Pure functions, but for the clock; what is parsed is
// untrusted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tplstore {

// "10G", "512M", "4096", "1T", "64K", optionally with "iB" behind the letter; binary multiples.
// Error(EINVAL) naming `what` for anything else, and for what does not fit 63 bits.
uint64_t parse_size(std::string_view what, std::string_view text);

// "2.0 GiB", for people.
std::string format_size(uint64_t bytes);

// "90s", "5m", "2h", "7d", "4w", or just seconds; Error(EINVAL) naming `what` for anything else,
// and for more than 200 years.
int64_t parse_duration_s(std::string_view what, std::string_view text);
// "7d", "36h", "90s": in the largest unit of which it is a whole number.
std::string format_duration(int64_t seconds);

// RFC 3339 in UTC with seconds, from nanoseconds since 1970.
std::string format_time(int64_t unix_ns);
// What format_time() writes, and nothing else; exact to a second.
std::optional<int64_t> parse_time(std::string_view text);
int64_t now_unix_ns();
int64_t since_boot_ns();  // also while the host slept

}  // namespace tplstore
