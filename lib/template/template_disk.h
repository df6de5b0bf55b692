// A template as a read-only disk: what the export "template/NAME" serves.
//
// Thread safety: all methods. Several connections may share it, since nothing changes.
#pragma once

#include <memory>

#include "base/disk.h"
#include "template/template_image.h"

namespace tplstore {

class TemplateDisk : public Disk {
 public:
  explicit TemplateDisk(std::shared_ptr<TemplateImage> image);

  uint64_t size_bytes() const override;
  bool is_writable() const override { return false; }
  bool allows_multi_conn() const override { return true; }

  void read(uint64_t offset, MutableBytes into) override;
  void extents(uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add) override;
  void write(uint64_t offset, Bytes from, bool durable) override;
  void trim(uint64_t offset, uint64_t length, bool durable) override;
  void zero(uint64_t offset, uint64_t length, bool durable) override;
  void flush() override {}
  // Reads the range and forgets it, so that the storage below has it in its cache.
  void cache(uint64_t offset, uint64_t length) override;

 private:
  [[noreturn]] void refuse() const;

  const std::shared_ptr<TemplateImage> image_;
};

}  // namespace tplstore
