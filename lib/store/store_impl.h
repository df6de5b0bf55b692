// What the files of Store share: its state, and how it finds, opens and lets go of volumes.
// Thread safety: as Store.
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <stop_token>
#include <string>
#include <thread>

#include "base/alarm.h"
#include "base/chore.h"
#include "base/units.h"
#include "boot/boot.h"
#include "store/boot_disks.h"
#include "store/journal_files.h"
#include "store/low_water.h"
#include "store/removed_volumes.h"
#include "store/store.h"
#include "store/volume_disk.h"
#include "store/volume_registry.h"
#include "template/origin.h"
#include "template/store_identity.h"
#include "tier/tier.h"
#include "volume/request_times.h"

namespace tplstore {

std::string volume_name_object(const std::string& volume);
Peer tool_peer();
// Throws EINVAL or EFBIG for what no disk can have.
void check_volume_size(const std::string& object, uint64_t size_bytes);
// Throws EFBIG for what the store's file system cannot hold.
[[noreturn]] void fail_too_large(Backend& backend, const std::string& object, uint64_t size_bytes);
// Gives back all that can be given back of a volume now.
void give_back(Volume& volume);

struct Store::Impl {
  Impl(std::unique_ptr<Backend> backend_of, const StoreOptions& options_of);

  std::shared_ptr<TemplateImage> open_template(const std::string& name);
  // The same, to make a volume of it: its import may be about to make the name durable, or have
  // failed to, and the volume needs it.
  std::shared_ptr<TemplateImage> open_durable_template(const std::string& name);
  // One that has this content, first of all the one with that name; nothing when none has.
  std::shared_ptr<TemplateImage> find_template(const ContentId& content, const std::string& likely);
  // Makes a volume of what `fill` writes over nothing or over a template: has its name when all is
  // there and durable, and is gone when that fails. With the gc lock held.
  void make_filled(const std::string& name, uint64_t size_bytes, const TemplateImage* base,
                   const std::function<void(Volume&, Disk&)>& fill);
  // Throws EEXIST when there is such a volume, EINVAL when there cannot be.
  void check_is_new(const std::string& volume);
  VersionInfo import_new(const std::string& name, const ImportedVersion& imported,
                         const std::function<void(Disk&)>& fill);
  Uuid uuid_of(const std::string& volume);
  // Has something happen to a volume's lock, whether it is open here or nowhere.
  LockStep change_lock(const std::string& volume, const LockEvent& event, const Peer& peer = {});
  std::optional<Uuid> look_up(const std::string& name);
  std::optional<std::string> renamed_to(const std::string& name, const Uuid& uuid);
  void settle_rename(const Uuid& uuid);
  void settle_rename_if_free(const Uuid& uuid);
  bool give_up_old_name(const std::string& name);
  // Whether no volume has this name; one that is damaged counts as one.
  bool is_free_name(const std::string& name);
  bool has_name(const std::string& name);
  // Whether a name leads to it, now. Who holds its lock can rely on that.
  bool is_named(const Uuid& uuid);
  // Volumes that were removed and can be restored, the last one first; of this name, or uuid.
  std::vector<RemovedVolume> removed_volumes(const std::string& name = "");
  bool can_be_restored(const Uuid& uuid);
  void put_aside(const std::string& name, const Uuid& uuid, int64_t keep_s);
  void forget_removed(const Uuid& uuid);
  std::optional<int64_t> kept_until(const Uuid& uuid);
  bool remove_for_good(const RemovedVolume& removed, int64_t now_ns);
  uint64_t remove_expired();
  void remove_expired_versions(const Uuid& uuid, int64_t now_ns);
  void check_names(const std::map<Uuid, std::string>& names);
  void for_each_name(
      const std::function<void(const std::string& name, const Uuid& volume)>& visit,
      const std::function<void(const std::string& name, const Error& error)>& unreadable);
  // Names that cannot be read are put into `damaged`, or thrown: whoever takes a volume without a
  // name for garbage must not go on.
  std::map<Uuid, std::string> volume_names(std::vector<std::string>* damaged = nullptr);
  std::vector<Uuid> volume_folders();
  std::unique_ptr<HeldLock> share_gc_lock();
  VolumeEnvironment environment();
  VolumeInfo info_of(const std::string& name, const std::map<Uuid, std::string>& names);
  void with_owner(const std::string& name, const std::function<void(Volume&)>& body);
  void with_owner(const Uuid& uuid, const std::string& name,
                  const std::function<void(Volume&)>& body);
  bool has_forks(const Uuid& uuid);
  bool is_free(const Uuid& uuid);
  std::optional<VolumeHeader> header_if_readable(const Uuid& uuid);
  // The objects of a volume that has no name yet, and that name: false when somebody has taken it.
  void make_objects(const std::string& object, const Uuid& uuid, uint64_t size_bytes,
                    const TemplateImage* base);
  // When it throws, the name was taken back; durably if sync_names() works, and until then the
  // objects must stay.
  bool publish(const std::string& volume, const Uuid& uuid);
  void remove_objects(const Uuid& uuid);
  Uuid remove_unneeded(const Uuid& uuid, const std::string& name, bool may_be_named = false);
  void sync_names();
  void release_parent(Uuid uuid);
  HeldVersion hold_version(const Uuid& uuid, const std::string& name, const std::string& version);
  std::vector<VersionRecord> versions_of(const Uuid& uuid);
  HeldVersion freeze_current(const Uuid& uuid, const std::string& name);
  void with_versions(const Uuid& uuid, const std::string& name,
                     const std::function<void(Volume&)>& body);
  // Whether this came of something that lies in the store and is no part of it, like a symbolic
  // link. Says so, once for each.
  bool is_foreign(const std::string& object, const Error& error);
  uint64_t allocated_below(Backend& in, const std::string& folder);
  uint64_t allocated_at(Backend& in, const std::string& name);
  uint64_t estimate_segments(Backend& in);
  std::unique_ptr<Backend> open_origin(const std::string& location);
  std::unique_ptr<Boot> make_boot();
  void make_tier();
  void use_copies();
  void run_upkeep();
  void run_expiry();
  void end_upkeep();
  void look_at_space();

  const std::unique_ptr<Backend> backend;
  const StoreOptions options;
  const StoreIdentity identity;
  std::unique_ptr<Boot> boot;  // or none
  RequestTimes times;
  JournalFiles journals{identity.uuid, options.run_directory, options.log};
  Origin origin{*backend, [this](const std::string& location) { return open_origin(location); }};
  std::unique_ptr<Tier> tier;  // or none
  BlockSource blocks{origin};
  bool has_copies = false;   // the block source knows of the tier; upkeep's
  bool was_booting = false;  // likewise
  const ExpiryClock expiry_clock{now_unix_ns(), since_boot_ns()};
  std::mutex templates_mutex;
  std::map<std::string, std::weak_ptr<TemplateImage>> templates;
  std::mutex foreign_mutex;
  std::set<std::string> foreign;  // what was named
  std::stop_source stop;
  std::atomic<bool> is_leaving = false;
  std::atomic<bool> has_left = false;
  VolumeRegistry registry;
  BootDisks boot_disks{*backend,
                       registry,
                       {[this](const std::string& name) { return open_template(name); },
                        [this](const std::string& name) { return uuid_of(name); }}};

  Alarm upkeep_alarm, expiry_alarm;
  // The upkeep's.
  Chore upkeep_of_all;
  Chore looking_at_space;
  LowWater low_water;
  std::chrono::steady_clock::time_point look_at_space_at{};
  std::thread upkeep, expiry;
};

}  // namespace tplstore
