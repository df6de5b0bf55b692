// What tests import from: disks in memory. Header only; each test's.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "template_testing.h"
#include "transfer/importer.h"

namespace tplstore::testing {

// A disk in memory as an image; it can fail on the way.
class MemorySource : public ImageSource {
 public:
  explicit MemorySource(ByteVector disk, uint64_t fail_at = UINT64_MAX)
      : disk_(std::move(disk)), fail_at_(fail_at) {}
  uint64_t size_bytes() const override { return disk_.size(); }
  std::string description() const override { return "memory\n"; }
  void read_data(const std::function<void(uint64_t, Bytes)>& consume) override {
    constexpr uint64_t kPieceBytes = 128 * kBlockBytes;
    for (uint64_t at = 0; at < disk_.size(); at += kPieceBytes) {
      if (at >= fail_at_) fail(EIO, "memory", "failed on the way");
      const Bytes piece = Bytes(disk_).subspan(at, std::min(kPieceBytes, disk_.size() - at));
      if (!is_zero(piece)) consume(at, piece);
    }
  }

 private:
  const ByteVector disk_;
  const uint64_t fail_at_;
};

inline ImportResult import_disk(const TemplateStorage& storage, const std::string& name,
                                const ByteVector& disk, const ImportOptions& options = {}) {
  return import_from(
      storage, name, [&] { return std::make_unique<MemorySource>(disk); }, options);
}

inline ByteVector read_whole(const TemplateImage& image) {
  ByteVector disk(image.size_bytes());
  image.read(0, disk);
  return disk;
}

}  // namespace tplstore::testing
