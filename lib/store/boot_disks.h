// What the boot cache sees of a store's disks (boot/boot_disk.h). None of them keeps a volume open,
// or a template from being removed, for longer than one call takes.
//
// Thread safety: all methods. Errors: ENOENT for what is not there.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "boot/boot_disk.h"
#include "store/volume_registry.h"

namespace tplstore {

// Outlives the disks that come from it.
class BootDisks {
 public:
  struct Finders {
    std::function<std::shared_ptr<TemplateImage>(const std::string& name)> open_template;
    std::function<Uuid(const std::string& name)> uuid_of_volume;
  };
  BootDisks(Backend& backend, VolumeRegistry& registry, Finders find)
      : backend_(backend), registry_(registry), find_(std::move(find)) {}

  std::shared_ptr<BootDisk> of_volume(const std::string& name, const Uuid& uuid);
  std::shared_ptr<BootDisk> of_template(const std::string& name);
  // A volume or a template as an operator names it; EINVAL where there are both. "template/NAME"
  // is always a template.
  std::shared_ptr<BootDisk> named(const std::string& name);

 private:
  class OfVolume;
  class OfTemplate;

  Backend& backend_;
  VolumeRegistry& registry_;
  const Finders find_;
};

}  // namespace tplstore
