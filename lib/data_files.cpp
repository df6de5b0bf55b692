#include "data_files.h"

#include <algorithm>
#include <cerrno>

#include "names.h"

namespace tplstore {

std::string DataFiles::name_of(const std::string& folder, uint32_t version) {
  return fmt::format("{}/data.{}", folder, version);
}

void DataFiles::create(Backend& backend, const std::string& folder, uint32_t version,
                       uint64_t disk_bytes) {
  backend.create(name_of(folder, version), round_up(disk_bytes, kBlockBytes));
  backend.sync_folder(folder);
}

DataFile& DataFiles::open(uint32_t version, Access access) {
  auto file = std::make_unique<DataFile>();
  file->version = version;
  try {
    file->object = backend_.open(name_of(folder_, version), access);
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
    fail(EIO, name_of(folder_, version), "is missing, though blocks of the volume are in it");
  }
  const std::unique_lock guard(mutex_);
  // Somebody else may have opened it at the same time.
  return *files_.try_emplace(version, std::move(file)).first->second;
}

DataFile& DataFiles::get(uint32_t version) {
  {
    const std::shared_lock guard(mutex_);
    const auto it = files_.find(version);
    if (it != files_.end()) return *it->second;
  }
  return open(version, Access::kRead);
}

void DataFiles::remove_above(uint32_t current) {
  constexpr std::string_view kPrefix = "data.";
  for (const std::string& name : backend_.list(folder_)) {
    if (!name.starts_with(kPrefix)) continue;
    const auto version = parse_version_number(std::string_view(name).substr(kPrefix.size()));
    if (version && *version > current) backend_.remove(folder_ + "/" + name);
  }
}

DataFile& DataFiles::begin(uint32_t current) {
  DataFile& file = open(current, Access::kWrite);
  const std::lock_guard guard(written_mutex_);
  written_.push_back(&file);
  return file;
}

void DataFiles::sync_existing(uint32_t version) {
  try {
    backend_.open(name_of(folder_, version), Access::kWrite)->sync();
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
  }
}

void DataFiles::prepare(uint32_t version, uint64_t disk_bytes) {
  const std::lock_guard guard(written_mutex_);
  if (prepared_ == version) {
    // It may have been made for a smaller disk.
    get(version).object->stretch(round_up(disk_bytes, kBlockBytes));
    return;
  }
  create(backend_, folder_, version, disk_bytes);
  open(version, Access::kWrite);
  prepared_ = version;
}

DataFile& DataFiles::advance(uint32_t version) {
  const std::lock_guard guard(written_mutex_);
  ensure(prepared_ == version, "the next version's file was made ahead");
  DataFile& file = get(version);
  written_.push_back(&file);
  return file;
}

void DataFiles::remove(uint32_t version) {
  {
    const std::lock_guard guard(written_mutex_);
    std::erase_if(written_, [version](const DataFile* file) { return file->version == version; });
  }
  backend_.remove(name_of(folder_, version));
}

void DataFiles::remove_prepared() {
  const std::lock_guard guard(written_mutex_);
  if (prepared_ != 0 && (written_.empty() || written_.back()->version != prepared_))
    backend_.remove(name_of(folder_, prepared_));
}

void DataFiles::stretch(uint32_t version, uint64_t disk_bytes) {
  get(version).object->stretch(round_up(disk_bytes, kBlockBytes));
  get(version).note_write();
}

void DataFiles::sync_written() {
  std::vector<DataFile*> files;
  {
    const std::lock_guard guard(written_mutex_);
    files = written_;
  }
  for (DataFile* file : files)
    if (file->is_dirty.exchange(false, std::memory_order_acq_rel)) file->object->sync();
  // What was frozen before is never written again.
  const std::lock_guard guard(written_mutex_);
  const auto last = std::find(written_.begin(), written_.end(), files.back());
  if (last != written_.end()) written_.erase(written_.begin(), last);
}

}  // namespace tplstore
