// Each call finds its volume or template anew.
#include "store/boot_disks.h"

#include <algorithm>
#include <cerrno>
#include <set>

#include "base/names.h"
#include "template/manifest.h"

namespace tplstore {
namespace {

void drop_cached_of(BootDisk& disk, std::span<const CellRun> runs) {
  disk.with_cells(runs, [](std::span<const CellPlace> places) {
    std::set<CellSource*> sources;
    for (const CellPlace& place : places)
      if (sources.insert(place.source).second) place.source->drop_cached();
  });
}

}  // namespace

class BootDisks::OfVolume final : public BootDisk {
 public:
  OfVolume(BootDisks& disks, const std::string& name, const Uuid& uuid)
      : disks_(disks), name_(name), uuid_(uuid) {
    const VolumeHeader header = read_header(disks.backend_, volume_folder(uuid), uuid);
    size_bytes_ = disk_size(header);
    template_name_ = template_of(header);
    if (!template_name_.empty()) template_uuid_ = header.template_uuid;
    if (!header.parent.is_nil()) find_ancestors();
  }

  const std::string& name() const override { return name_; }
  Uuid volume() const override { return uuid_; }
  std::optional<Uuid> template_uuid() const override { return template_uuid_; }
  std::span<const BootAncestor> ancestors() const override { return ancestors_; }
  uint64_t size_bytes() const override { return size_bytes_; }
  bool is_gone() const override { return !disks_.registry_.is_open(uuid_); }
  std::shared_ptr<BootDisk> open_template() override {
    try {
      if (!template_uuid_) return nullptr;
      auto origin = disks_.of_template(template_name_);
      return origin->template_uuid() == template_uuid_ ? origin : nullptr;
    } catch (const Error&) {
      return nullptr;  // removed, or damaged
    }
  }

  void with_cells(std::span<const CellRun> runs,
                  const std::function<void(std::span<const CellPlace>)>& body) override {
    find_open()->volume().with_cells(runs, body);
  }
  void settle() override { find_open()->volume().flush(); }
  void take_tables() override {
    if (!template_uuid_) return;
    const auto image = disks_.find_.open_template(template_name_);
    if (image->uuid() == template_uuid_) image->take_tables(disks_.backend_);
  }
  void drop_cached(std::span<const CellRun> runs) override { drop_cached_of(*this, runs); }

 private:
  std::unique_ptr<VolumeRegistry::Attachment> find_open() {
    auto open = disks_.registry_.find_open(uuid_);
    if (!open) fail(ESHUTDOWN, fmt::format("volume {}", name_), "is not open any more");
    return open;
  }
  void find_ancestors() {
    const auto take = [this](Volume& volume) {
      for (const SourceRow& row : volume.ancestors()) ancestors_.push_back({row.volume, row.last});
    };
    try {
      if (const auto open = disks_.registry_.find_open(uuid_))
        take(open->volume());
      else
        take(*disks_.registry_.reader(uuid_, name_, [](Volume&) {}));
    } catch (const Error&) {
      ancestors_.clear();  // it is damaged, or going: it boots by its own profile or the template's
    }
    std::ranges::reverse(ancestors_);
  }

  BootDisks& disks_;
  const std::string name_;
  const Uuid uuid_;
  uint64_t size_bytes_;
  std::string template_name_;
  std::optional<Uuid> template_uuid_;
  std::vector<BootAncestor> ancestors_;
};

class BootDisks::OfTemplate final : public BootDisk {
 public:
  OfTemplate(BootDisks& disks, const std::string& name) : disks_(disks), name_(name) {
    const HeldManifest held = hold_manifest(disks.backend_, name);
    uuid_ = held.manifest.uuid;
    size_bytes_ = held.manifest.size_bytes;
  }

  const std::string& name() const override { return name_; }
  Uuid volume() const override { return {}; }
  std::optional<Uuid> template_uuid() const override { return uuid_; }
  uint64_t size_bytes() const override { return size_bytes_; }
  bool is_gone() const override { return load_manifest_uuid(disks_.backend_, name_) != uuid_; }
  std::shared_ptr<BootDisk> open_template() override { return nullptr; }

  void with_cells(std::span<const CellRun> runs,
                  const std::function<void(std::span<const CellPlace>)>& body) override {
    const auto image = disks_.find_.open_template(name_);
    if (image->uuid() != uuid_)
      fail(ENOENT, fmt::format("template {}", name_), "was removed, and another one imported");
    std::vector<CellPlace> places;
    for (size_t i = 0; i < runs.size(); ++i)
      if (runs[i].source == kFromTemplate)
        image->find_cells(runs[i].first, runs[i].count, i, places);
    body(places);
  }
  void take_tables() override {}
  void drop_cached(std::span<const CellRun> runs) override { drop_cached_of(*this, runs); }

 private:
  BootDisks& disks_;
  const std::string name_;
  Uuid uuid_;
  uint64_t size_bytes_;
};

std::shared_ptr<BootDisk> BootDisks::of_volume(const std::string& name, const Uuid& uuid) {
  return std::make_shared<OfVolume>(*this, name, uuid);
}

std::shared_ptr<BootDisk> BootDisks::of_template(const std::string& name) {
  return std::make_shared<OfTemplate>(*this, name);
}

std::shared_ptr<BootDisk> BootDisks::named(const std::string& name) {
  constexpr std::string_view kPrefix = "template/";
  if (name.starts_with(kPrefix)) {
    const std::string of_template_name = name.substr(kPrefix.size());
    check_name("template", of_template_name);
    return of_template(of_template_name);
  }
  check_name("volume", name);
  const bool is_template = load_manifest_uuid(backend_, name).has_value();
  Uuid volume;
  try {
    volume = find_.uuid_of_volume(name);
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
    if (is_template) return of_template(name);
    fail(ENOENT, name, "there is no volume and no template of that name");
  }
  if (is_template) fail(EINVAL, name, "is a volume and a template; call that 'template/{}'", name);
  return of_volume(name, volume);
}

}  // namespace tplstore
