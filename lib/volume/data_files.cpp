// Files by version: opened when first needed, from whoever's folder they are in.
#include "volume/data_files.h"

#include <algorithm>
#include <cerrno>

#include "base/names.h"

namespace tplstore {

std::string DataFiles::name_of(const std::string& folder, uint32_t version) {
  return fmt::format("{}/data.{}", folder, version);
}

void DataFiles::create(Backend& backend, const std::string& folder, uint32_t version,
                       uint64_t disk_bytes) {
  backend.create(name_of(folder, version), round_up(disk_bytes, kBlockBytes), Purpose::kData);
  backend.sync_folder(folder);
}

void DataFiles::set_ancestors(std::vector<Ancestor> ancestors) {
  const Lock guard(mutex_);
  ancestors_ = std::move(ancestors);
}

const DataFiles::Ancestor* DataFiles::ancestor_of(uint32_t version) const {
  const auto ancestor = std::find_if(ancestors_.begin(), ancestors_.end(),
                                     [version](const Ancestor& a) { return version <= a.last; });
  return ancestor == ancestors_.end() ? nullptr : &*ancestor;
}

std::string DataFiles::file_of(uint32_t version) const {
  const Ancestor* ancestor = ancestor_of(version);
  return name_of(ancestor == nullptr ? folder_ : ancestor->folder, version);
}

std::shared_ptr<DataFile> DataFiles::open(uint32_t version, Access access) {
  while (true) {
    std::string name;
    auto file = std::make_shared<DataFile>();
    file->version = version;
    {
      const SharedLock guard(mutex_);
      name = file_of(version);
      const Ancestor* ancestor = ancestor_of(version);
      file->key =
          CellFileKey::of_version(ancestor == nullptr ? volume_ : ancestor->volume, version);
    }
    if (cells_ != nullptr) file->cells = cells_->file(file->key);
    try {
      file->object = backend_.open(name, access, Purpose::kData);
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;
      fail(EIO, name, "is missing, though blocks of the volume are in it");
    }
    const Lock guard(mutex_);
    // A copy may have taken its place meanwhile; or somebody else has opened it.
    if (file_of(version) != name) continue;
    table_.make_room(version);
    const auto [it, is_new] = files_.try_emplace(version, std::move(file));
    if (is_new) table_.put(version, it->second.get());
    return it->second;
  }
}

// The versions that have files in the volume's own folder.
std::vector<uint32_t> DataFiles::own_versions() {
  constexpr std::string_view kPrefix = "data.";
  std::vector<uint32_t> versions;
  for (const std::string& name : backend_.list(folder_)) {
    if (!name.starts_with(kPrefix)) continue;
    const auto version = parse_version_number(std::string_view(name).substr(kPrefix.size()));
    if (version) versions.push_back(*version);
  }
  return versions;
}

void DataFiles::remove_above(uint32_t current) {
  for (const uint32_t version : own_versions())
    if (version > current) backend_.remove(own_name(version));
}

DataFile& DataFiles::begin(uint32_t current) {
  auto file = open(current, Access::kWrite);
  const Lock guard(written_mutex_);
  return *written_.emplace_back(std::move(file));
}

void DataFiles::settle_from(uint32_t first) {
  for (const uint32_t version : own_versions())
    if (version >= first)
      if (const auto object = open_for_punching(version)) settle(*object);
}

bool has_data(Object& file, uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  while (offset < end) {
    const auto data = file.find_data(offset);
    if (!data || data->offset > offset) return false;
    offset = data->offset + data->length;
  }
  return true;
}

void DataFiles::prepare(uint32_t version, uint64_t disk_bytes) {
  const Lock guard(written_mutex_);
  if (prepared_ == version) {
    // It may have been made for a smaller disk.
    get(version).grow(round_up(disk_bytes, kBlockBytes));
    return;
  }
  // Nothing is in it, since no map leads to a version that does not exist.
  backend_.remove(own_name(version));
  written_.reserve(written_.size() + 1);
  create(backend_, folder_, version, disk_bytes);
  open(version, Access::kWrite);
  prepared_ = version;
}

DataFile& DataFiles::advance(uint32_t version) noexcept {
  const Lock guard(written_mutex_);
  ensure(prepared_ == version, "the next version's file was made ahead");
  const SharedLock files_guard(mutex_);
  return *written_.emplace_back(files_.at(version));
}

void DataFiles::remove(uint32_t version) {
  {
    const Lock guard(written_mutex_);
    std::erase_if(written_, [version](const auto& file) { return file->version == version; });
  }
  {
    const Lock guard(mutex_);
    table_.put(version, nullptr);
    files_.erase(version);
  }
  // Readers of other versions may have it open: without its blocks that costs nothing.
  if (const auto object = open_for_punching(version))
    object->punch(0, round_up(object->size_bytes(), kBlockBytes));
  backend_.remove(own_name(version));
}

std::unique_ptr<Object> DataFiles::open_for_punching(uint32_t version) {
  try {
    return backend_.open(own_name(version), Access::kWrite, Purpose::kData);
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
    return nullptr;
  }
}

void DataFiles::note_holes(uint32_t version) {
  const Lock guard(written_mutex_);
  with_holes_.insert(version);
}

void DataFiles::sync_holes(const std::function<void(Object&)>& sync) {
  std::set<uint32_t> with_holes;
  {
    const Lock guard(written_mutex_);
    with_holes.swap(with_holes_);
  }
  try {
    for (const uint32_t version : with_holes)
      if (const auto file = open_for_punching(version)) sync(*file);
    if (!with_holes.empty()) backend_.sync_folder(folder_);
  } catch (...) {
    const Lock guard(written_mutex_);
    with_holes_.merge(with_holes);
    throw;
  }
}

void DataFiles::remove_prepared() {
  const Lock guard(written_mutex_);
  if (prepared_ != 0 && (written_.empty() || written_.back()->version != prepared_))
    backend_.remove(own_name(prepared_));
}

void DataFiles::sync_written() {
  std::vector<std::shared_ptr<DataFile>> files;
  {
    const Lock guard(written_mutex_);
    files = written_;
  }
  for (const auto& file : files)
    if (file->is_dirty.exchange(false, std::memory_order_acq_rel)) file->object->sync();
  // What was frozen before is never written again.
  const Lock guard(written_mutex_);
  const auto last = std::find(written_.begin(), written_.end(), files.back());
  if (last != written_.end()) written_.erase(written_.begin(), last);
}

// --- copies of ancestors' files

Object& DataFiles::copy_of(uint32_t version) {
  std::unique_ptr<Object>& copy = copies_[version];
  if (!copy) copy = backend_.create(own_name(version), get(version).size_bytes(), Purpose::kData);
  return *copy;
}

void DataFiles::forget_copies() {
  copies_.clear();
  uint32_t last = 0;
  {
    const SharedLock guard(mutex_);
    if (!ancestors_.empty()) last = ancestors_.back().last;
  }
  for (const uint32_t version : own_versions())
    if (version <= last) backend_.remove(own_name(version));
}

void DataFiles::sync_copies() {
  for (const auto& [version, copy] : copies_) copy->sync();
  if (!copies_.empty()) backend_.sync_folder(folder_);
}

std::vector<std::shared_ptr<DataFile>> DataFiles::end_copies() {
  std::vector<std::shared_ptr<DataFile>> replaced;
  const Lock guard(mutex_);
  const uint32_t last = ancestors_.empty() ? 0 : ancestors_.back().last;
  for (auto it = files_.begin(); it != files_.end();) {
    if (it->first > last) {
      ++it;
      continue;
    }
    table_.put(it->first, nullptr);
    replaced.push_back(std::move(it->second));
    it = files_.erase(it);
  }
  ancestors_.clear();
  copies_.clear();
  return replaced;
}

}  // namespace tplstore
