// Hands everything on to the image.
#include "template/template_disk.h"

#include <algorithm>

namespace tplstore {

TemplateDisk::TemplateDisk(std::shared_ptr<TemplateImage> image) : image_(std::move(image)) {}

uint64_t TemplateDisk::size_bytes() const { return image_->size_bytes(); }

void TemplateDisk::read(uint64_t offset, MutableBytes into) { image_->read(offset, into); }

void TemplateDisk::extents(uint64_t offset, uint64_t length,
                           const std::function<bool(const Extent&)>& add) {
  const uint64_t end = std::min(offset + length, size_bytes());
  while (offset < end) {
    const uint64_t block = offset / kBlockBytes;
    const auto run = image_->run_at(block, blocks_of(end) - block);
    const uint64_t run_end = std::min(end, (block + run.count) * kBlockBytes);
    if (!add({offset, run_end - offset, run.is_hole})) return;
    offset = run_end;
  }
}

void TemplateDisk::refuse() const {
  fail(EROFS, image_->name(), "templates are never written; create a volume from it");
}

void TemplateDisk::write(uint64_t, Bytes, bool) { refuse(); }
void TemplateDisk::trim(uint64_t, uint64_t, bool) { refuse(); }
void TemplateDisk::zero(uint64_t, uint64_t, bool) { refuse(); }

void TemplateDisk::cache(uint64_t offset, uint64_t length) {
  constexpr uint64_t kScratchBytes = uint64_t{256} << 10;
  const uint64_t end = std::min(offset + length, size_bytes());
  ByteVector scratch(std::min(kScratchBytes, end > offset ? end - offset : 0));
  try {
    while (offset < end) {
      const uint64_t count = std::min<uint64_t>(scratch.size(), end - offset);
      image_->read(offset, MutableBytes(scratch).first(count));
      offset += count;
    }
  } catch (const Error&) {
    // Advice only: the read that needs the data will report what is wrong with it.
  }
}

}  // namespace tplstore
