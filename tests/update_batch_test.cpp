// Which updates become one record, and what a cut takes.
#include "map/update_batch.h"

#include <doctest/doctest.h>

#include "map/records.h"
#include "template_testing.h"

namespace tplstore::update_batch_test {
namespace {

class BatchUnderTest {
 public:
  bool update(uint64_t first, uint32_t count, uint32_t source) {
    batch_.make_room(kRecordBytes);
    return batch_.add_update({{first, count}, source});
  }
  void add(const MapRecord& record, uint64_t reserved_bytes) {
    Encoder bytes;
    encode_record(bytes, record);
    batch_.make_room(bytes.size());
    batch_.add(bytes.bytes(), reserved_bytes);
  }
  // What a cut has, record by record.
  std::vector<MapRecord> cut(uint64_t reserved_bytes) {
    const uint64_t size_bytes = batch_.size_bytes();
    const UpdateBatch::Cut cut = batch_.cut();
    CHECK(cut.records.size() == size_bytes);
    CHECK(cut.reserved_bytes == reserved_bytes);
    CHECK(batch_.size_bytes() == 0);
    std::vector<MapRecord> records;
    Decoder decoder(cut.records, "batch");
    while (!decoder.empty()) records.push_back(decode_record(decoder));
    return records;
  }

 private:
  UpdateBatch batch_;
};

void check_update(const MapRecord& record, uint64_t first, uint64_t count, uint32_t source) {
  const auto& update = std::get<UpdateRecord>(record);
  CHECK(update.first == first);
  CHECK(update.count == count);
  CHECK(update.source == source);
}

}  // namespace

TEST_CASE("updates that go on where the last one ended are one record, and need none reserved") {
  BatchUnderTest batch;
  CHECK(batch.update(10, 2, 3));
  CHECK_FALSE(batch.update(12, 1, 3));
  CHECK(batch.update(13, 1, 4));  // another source
  CHECK(batch.update(15, 1, 4));  // a gap
  CHECK(batch.update(14, 1, 4));  // backwards
  const auto records = batch.cut(4 * kRecordBytes);
  REQUIRE(records.size() == 4);
  check_update(records[0], 10, 3, 3);
  check_update(records[1], 13, 1, 4);
  check_update(records[2], 15, 1, 4);
  check_update(records[3], 14, 1, 4);
}

TEST_CASE("an update goes on with no record of another kind, nor with one that was cut") {
  BatchUnderTest batch;
  CHECK(batch.update(0, 1, 0));
  // Its number, count and source look like an update's up to block 1.
  batch.add(HideRecord{1}, 3 * kRecordBytes);
  CHECK(batch.update(1, 1, 0));
  const auto records = batch.cut(5 * kRecordBytes);
  REQUIRE(records.size() == 3);
  CHECK(std::get<HideRecord>(records[1]).version == 1);
  check_update(records[2], 1, 1, 0);
  CHECK(batch.update(2, 1, 0));
  CHECK(batch.cut(kRecordBytes).size() == 1);
  CHECK(batch.cut(0).empty());
}

TEST_CASE("a record counts no more blocks than its field can") {
  BatchUnderTest batch;
  CHECK(batch.update(0, UINT32_MAX - 1, 1));
  CHECK_FALSE(batch.update(UINT32_MAX - 1, 1, 1));
  CHECK(batch.update(UINT32_MAX, 1, 1));
  CHECK(batch.cut(2 * kRecordBytes).size() == 2);
}

TEST_CASE("every kind of record is read as it was written") {
  const Uuid fork = random_uuid();
  FreezeRecord freeze;
  freeze.next = 8;
  freeze.parent = 3;
  freeze.created_ns = -5;
  freeze.size_bytes = 4096;
  freeze.for_reader = true;
  freeze.name = "monday";
  freeze.note = "before the upgrade";
  freeze.origin = {random_uuid(), 9};
  BatchUnderTest batch;
  batch.add(UpdateRecord{uint64_t{1} << 33, 7, UINT32_MAX}, 0);
  batch.add(freeze, 0);
  freeze = {};
  freeze.is_unswept = true;
  batch.add(freeze, 0);
  batch.add(ResizeRecord{uint64_t{1} << 45}, 0);
  batch.add(CollectRecord{UINT32_MAX - 1}, 0);
  batch.add(PinRecord{5, fork}, 0);
  batch.add(UnpinRecord{fork}, 0);
  batch.add(FlattenBeginRecord{}, 0);
  batch.add(FlattenEndRecord{}, 0);
  const auto records = batch.cut(0);
  REQUIRE(records.size() == 9);
  check_update(records[0], uint64_t{1} << 33, 7, UINT32_MAX);
  const auto& read = std::get<FreezeRecord>(records[1]);
  CHECK(read.next == 8);
  CHECK(read.parent == 3);
  CHECK(read.created_ns == -5);
  CHECK(read.size_bytes == 4096);
  CHECK(read.for_reader);
  CHECK_FALSE(read.is_unswept);
  CHECK(read.name == "monday");
  CHECK(read.note == "before the upgrade");
  CHECK(read.origin.number == 9);
  CHECK(std::get<FreezeRecord>(records[2]).is_unswept);
  CHECK(std::get<FreezeRecord>(records[2]).origin.is_nil());
  CHECK(std::get<ResizeRecord>(records[3]).size_bytes == uint64_t{1} << 45);
  CHECK(std::get<CollectRecord>(records[4]).version == UINT32_MAX - 1);
  CHECK(std::get<PinRecord>(records[5]).version == 5);
  CHECK(std::get<PinRecord>(records[5]).fork == fork);
  CHECK(std::get<UnpinRecord>(records[6]).fork == fork);
  CHECK(std::holds_alternative<FlattenBeginRecord>(records[7]));
  CHECK(std::holds_alternative<FlattenEndRecord>(records[8]));
}

TEST_CASE("records that no map can have are damage, and those of a later version are told apart") {
  using testing::thrown_by;
  const auto code_of = [](Encoder& bytes) {
    Decoder decoder(bytes.bytes(), "batch");
    return thrown_by([&] { decode_record(decoder); }).code;
  };
  Encoder unknown;
  unknown.put(RecordHeader::make(static_cast<RecordKind>(11), 0));
  CHECK(code_of(unknown) == EINVAL);
  FreezeRecord freeze;
  freeze.name = "a/b";
  Encoder bad_name;
  encode_record(bad_name, freeze);
  CHECK(code_of(bad_name) == EIO);
  freeze.name = "ab";
  Encoder cut_off;
  encode_record(cut_off, freeze);
  CHECK(code_of(cut_off) == 0);
  cut_off.bytes().pop_back();
  CHECK(code_of(cut_off) == EIO);
}

}  // namespace tplstore::update_batch_test
