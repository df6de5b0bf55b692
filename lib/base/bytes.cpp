// XXH3 stands behind the checksums; what was parsed must be what is written for it.
#include "base/bytes.h"

#include <sys/random.h>
#include <xxhash.h>

#include <cerrno>
#include <charconv>

namespace tplstore {

bool is_zero(Bytes bytes) {
  if (bytes.empty()) return true;
  return bytes[0] == std::byte{0} &&
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

uint64_t checksum(Bytes bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

Hash128 content_hash(Bytes bytes, const HashSecret& secret) {
  const XXH128_hash_t hash =
      XXH3_128bits_withSecret(bytes.data(), bytes.size(), secret.bytes, sizeof secret.bytes);
  return {hash.high64, hash.low64};
}

std::string Hash128::hex() const { return fmt::format("{:016x}{:016x}", high, low); }

namespace {

void random_bytes(void* into, size_t count) {
  if (getrandom(into, count, 0) != static_cast<ssize_t>(count))
    fail_errno(errno, "random numbers", "getrandom");
}

}  // namespace

bool parse_hash(std::string_view hex, Hash128& into) {
  if (hex.size() != 32) return false;
  Hash128 hash;
  std::from_chars(hex.data(), hex.data() + 16, hash.high, 16);
  std::from_chars(hex.data() + 16, hex.data() + 32, hash.low, 16);
  if (hash.hex() != hex) return false;
  into = hash;
  return true;
}

uint64_t Decoder::take_varint() {
  uint64_t value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    const auto byte = static_cast<uint8_t>(take_bytes(1)[0]);
    if (shift == 63 && byte > 1) break;
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return value;
  }
  fail(EIO, object_, "damaged: a number is longer than 64 bits");
}

void Encoder::put_varint(uint64_t value) {
  while (value >= 0x80) {
    bytes_.push_back(static_cast<std::byte>(value | 0x80));
    value >>= 7;
  }
  bytes_.push_back(static_cast<std::byte>(value));
}

std::string Uuid::text() const {
  std::string text;
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", bytes[i]);
  }
  return text;
}

HashSecret random_secret() {
  HashSecret secret;
  random_bytes(secret.bytes, sizeof secret.bytes);
  return secret;
}

Uuid random_uuid() {
  Uuid uuid;
  random_bytes(uuid.bytes, sizeof uuid.bytes);
  uuid.bytes[6] = static_cast<uint8_t>((uuid.bytes[6] & 0x0f) | 0x40);
  uuid.bytes[8] = static_cast<uint8_t>((uuid.bytes[8] & 0x3f) | 0x80);
  return uuid;
}

bool parse_uuid(std::string_view text, Uuid& into) {
  std::string digits(text);
  std::erase(digits, '-');
  if (digits.size() != 32) return false;
  Uuid uuid;
  for (size_t i = 0; i < 16; ++i)
    std::from_chars(&digits[2 * i], &digits[2 * i] + 2, uuid.bytes[i], 16);
  if (uuid.text() != text) return false;
  into = uuid;
  return true;
}

void fail_of_another(const std::string& object, const Uuid& found, const Uuid& wanted) {
  fail(EIO, object, "damaged: it is that of volume {}, and lies where that of volume {} belongs",
       found.text(), wanted.text());
}

uint64_t random_u64() {
  uint64_t value;
  random_bytes(&value, sizeof value);
  return value;
}

}  // namespace tplstore
