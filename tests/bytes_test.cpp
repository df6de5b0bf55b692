#include "base/bytes.h"

#include <doctest/doctest.h>

#include <random>

namespace tplstore::bytes_test {

TEST_CASE("a hash is read as it is written, and nothing else is") {
  std::mt19937_64 random(1);
  for (int i = 0; i < 100; ++i) {
    const Hash128 hash{random() >> random() % 64, random() >> random() % 64};
    Hash128 parsed;
    REQUIRE(parse_hash(hash.hex(), parsed));
    CHECK(parsed == hash);
  }
  for (const char* text :
       {"", "0123456789abcdef0123456789abcde", "0123456789abcdef0123456789abcdef0",
        "0123456789abcdef0123456789abcdeg", "0123456789abcdeF0123456789abcdef",
        "-123456789abcdef0123456789abcdef", "0123456789abcdef 123456789abcdef",
        "0x23456789abcdef0123456789abcdef", "g123456789abcdef0123456789abcdef"}) {
    CAPTURE(text);
    Hash128 untouched{1, 2};
    CHECK_FALSE(parse_hash(text, untouched));
    CHECK(untouched == Hash128{1, 2});
  }
}

TEST_CASE("a uuid is read as it is written, and nothing else is") {
  for (int i = 0; i < 100; ++i) {
    const Uuid uuid = random_uuid();
    Uuid parsed;
    REQUIRE(parse_uuid(uuid.text(), parsed));
    CHECK(parsed == uuid);
  }
  for (const char* text :
       {"", "2d9a61f40b3c4f158e77c6a1940de352", "2d9a61f4-0b3c-4f15-8e77-c6a1940de35",
        "2d9a61f4-0b3c-4f15-8e77-c6a1940de3520", "2D9a61f4-0b3c-4f15-8e77-c6a1940de352",
        "2d9a61f40-b3c-4f15-8e77-c6a1940de352", "2d9a61f4-0b3c-4f15-8e77-c6a1940de35g",
        "2d9a61f4-0b3c-4f15-8e77-c6a1940de352-", "-d9a61f4-0b3c-4f15-8e77-c6a1940de3521"}) {
    CAPTURE(text);
    const Uuid before = random_uuid();
    Uuid untouched = before;
    CHECK_FALSE(parse_uuid(text, untouched));
    CHECK(untouched == before);
  }
}

TEST_CASE("numbers of any length come back, and what was cut is an error") {
  std::mt19937_64 random(2);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t number = random() >> random() % 64;
    Encoder encoder;
    encoder.put_varint(number);
    encoder.put(uint32_t{7});
    Decoder decoder(encoder.bytes(), "x");
    REQUIRE(decoder.take_varint() == number);
    REQUIRE(decoder.take<uint32_t>() == 7);
    REQUIRE(decoder.empty());
    CHECK_THROWS_AS(decoder.take_bytes(1), Error);
  }
  const ByteVector endless(11, std::byte{0xff});
  CHECK_THROWS_AS(Decoder(endless, "x").take_varint(), Error);
}

}  // namespace tplstore::bytes_test
