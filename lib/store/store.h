// A store: templates, volumes and their names on one backend. What the plugin and the tool use.
//
// Start reading the library here. A server makes one Store; every connection gets a Disk from
// open_export(). The tool makes one too, and does with it what it may do itself; what concerns a
// volume that a server has open throws Error(EBUSY), upon which the tool asks that server
// (control/client.h).
//
// Thread safety: all methods. Errors: Error everywhere; see the methods.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/disk.h"
#include "base/findings.h"
#include "base/log.h"
#include "base/volume_types.h"
#include "boot/boot.h"
#include "template/content_id.h"
#include "template/move_origin.h"
#include "tier/tier.h"
#include "volume/removed_versions.h"

namespace tplstore {

enum class IoMode { kBuffered, kDirect };

struct StoreOptions {
  IoMode io = IoMode::kBuffered;
  uint64_t map_cache_bytes = uint64_t{64} << 20;
  // Log lines for the operator (recoveries, take-overs, damage, I/O errors).
  Log log = {};
  // Every process at the other end of a Unix socket is one VM: its connections add up.
  bool same_vm_is_pid = false;
  // How long a volume is kept for the VM that was connected when a server died, where nobody can
  // tell whether that VM lives.
  std::chrono::milliseconds reconnect_grace = std::chrono::seconds(30);
  // Whether segments are read from copies that this host has (tier/tier.h), and where the table of
  // those is: an empty path is the default one.
  bool has_tier = false;
  std::string tier_state = {};
  uint64_t tier_fill_bytes_per_second = uint64_t{100} << 20;
  std::chrono::seconds tier_keep = std::chrono::hours(24);
  // What booting VMs read is kept in memory, if the cap is not 0.
  BootOptions boot = {.cap_bytes = 0};
  // Of a server: makes the directory of the host in which is kept what must outlive the process,
  // and says where it is. Called when a volume is opened for the first time.
  std::function<std::string()> run_directory = {};
};

struct ExportInfo {
  std::string name;
  std::string description;
};

// What became of the volumes that were open when a program left.
struct Left {
  uint64_t closed = 0;
  std::vector<std::string> unclean;  // to be recovered by the next opening; the log says why
};

class Store {
 public:
  // Makes an empty store at a location (backend/open_backend.h) where there is nothing yet (EEXIST,
  // ENOTEMPTY).
  // With its segments there too, or in a directory of their own, which must have none (EEXIST).
  static void init(const std::string& location, const std::string& segments = "");
  static void init(Backend& backend);
  // Opens the store at a location; ENOENT with advice when there is none, EIO when its identity
  // is damaged, EINVAL when it was made by a newer format. Starts no thread.
  static std::unique_ptr<Store> open(const std::string& location, const StoreOptions& options);
  Store(std::unique_ptr<Backend> backend, const StoreOptions& options);
  // Closes what is open, cleanly. All Disks must be gone.
  ~Store();

  // Starts the background threads (checkpoints, log compaction; the removal of what was kept long
  // enough). After a fork, not before.
  void start();
  // The program is ending: what takes long ends early, with ESHUTDOWN (flattening) or with the rest
  // left for the next time (giving back space). Volumes stay those of the VMs that are connected.
  void stop();
  // The same, for a program that is to end without a word to its connections, which go on at the
  // next one: all that was answered is made durable and what is open is closed, under the Disks,
  // which are still there and from some moment on have ESHUTDOWN for what they are asked. From its
  // beginning is_leaving() holds: no error that a Disk, or opening one, throws then may be told.
  // When it has ended, even by an error, has_left() holds, and all that is left to do is _exit().
  // EALREADY when it was called before.
  Left leave();
  bool is_leaving() const;
  bool has_left() const;

  Backend& backend();
  // Nothing without `has_tier`.
  Tier* tier();
  // What templates are made of.
  TemplateStorage templates();
  // Where their segments are; empty: in the store.
  std::string segments_location();
  // Moves the segments to another location, or, if that is the store's own, back into the store.
  OriginMove move_origin(const std::string& location,
                         const std::function<void(uint64_t done, uint64_t segments)>& progress,
                         const std::function<bool()>& interrupted);
  // Removes what was left where segments were once; the location of one that cannot be reached.
  std::string leave_former_origins();

  // --- volumes
  // Size 0 with a template: the template's. EEXIST, ENOENT (template), EINVAL (smaller than the
  // template, 0, or not a multiple of 512), EFBIG (the file system cannot hold such a file).
  VolumeInfo create_volume(const std::string& name, uint64_t size_bytes,
                           const std::string& template_name);
  // A volume that begins as a frozen version of another one, at once, and shares its data. Size 0:
  // the version's. EEXIST, ENOENT, EINVAL (smaller).
  VolumeInfo fork_volume(const std::string& name, const std::string& parent,
                         const std::string& version, uint64_t size_bytes);
  // Gives a fork its own copy of what it shares, so that it needs its parent no more. EINVAL when
  // it is no fork, EBUSY when it has forks itself.
  VolumeInfo flatten_volume(const std::string& name,
                            const std::function<void(uint64_t done_bytes)>& progress);
  std::vector<VolumeInfo> list_volumes();
  // The volumes that need each template, for who is about to remove templates or what they are made
  // of. EIO, or why a header cannot be read, when not all is known or a template is missing.
  std::map<std::string, std::vector<std::string>> template_users();
  VolumeInfo show_volume(const std::string& name);  // with its versions
  // Grows only (EINVAL). When this process has it open, new connections see the new size.
  VolumeInfo resize_volume(const std::string& name, uint64_t size_bytes);
  // EBUSY while a writer has it or a reader reads one of its versions; EIO when its header is there
  // and cannot be read, unless it shall go even then. What forks need of it stays, without a name,
  // until they are gone.
  // With `keep_s` it is put aside for so many seconds, in which it can be restored. When that was
  // until then.
  enum class IfDamaged { kKeep, kRemove };
  std::optional<int64_t> remove_volume(const std::string& name,
                                       IfDamaged if_damaged = IfDamaged::kKeep, int64_t keep_s = 0);
  // Those that were put aside, the last one first.
  std::vector<RemovedVolume> list_removed();
  // Gives the one its name back that was removed last under this name, or has this uuid; or gives
  // it another name. ENOENT; EEXIST when there is a volume of that name.
  VolumeInfo restore_volume(const std::string& name, const std::string& new_name = "");
  // Removes those for good whose time has come, and versions likewise; how many volumes. A server
  // does that by itself, for the volumes that it has open and those that nobody has.
  uint64_t remove_expired();
  // For how many seconds a volume is kept that is removed where nobody says so.
  int64_t removal_keep_s();
  void set_removal_keep_s(int64_t seconds);
  // After a crash at any moment it has either name and no other. EBUSY naming the owner while
  // somebody has it open or reads one of its versions; EEXIST.
  void rename_volume(const std::string& name, const std::string& new_name);
  // Gives back what can be given back of a volume: of versions and forks that are gone. Waits.
  void reclaim_volume(const std::string& name);

  // --- versions; `version` is a number or a name
  // Freezes current, atomically against requests in flight, durable on return; the frozen one.
  VersionInfo create_version(const std::string& volume, const NewVersion& request);
  // The same of several volumes at one moment; all are made or none, also where a crash comes
  // between. Those that are not open are opened. EBUSY when another process has one of them.
  std::vector<VersionInfo> create_versions(const std::vector<std::string>& volumes,
                                           const NewVersion& request);
  // Freezes current and starts a new current from `version`; the frozen one. EBUSY while a writer
  // is connected.
  VersionInfo rollback(const std::string& volume, const std::string& version);
  // Removes frozen versions, all or none, in any order. ENOENT; EBUSY for current and for one that
  // is being read. What forks or several later versions need of one stays, hidden. Space that
  // nothing needs is given back at once where no VM is connected, else in the background.
  std::vector<VersionInfo> remove_versions(const std::string& volume,
                                           const std::vector<std::string>& versions);
  // The same, but for so many seconds they are kept and can be restored; as long as that their
  // names are not free.
  std::vector<VersionInfo> put_versions_aside(const std::string& volume,
                                              const std::vector<std::string>& versions,
                                              int64_t keep_s);
  VersionInfo restore_version(const std::string& volume, const std::string& version);
  // Those that were removed and are kept, by their numbers.
  std::map<uint32_t, RemovedVersion> list_removed_versions(const std::string& volume);
  // Calls `add` for what differs between two versions, in rising order; an empty `to` is current.
  // Takes time in proportion to that.
  void diff_versions(const std::string& volume, const std::string& from, const std::string& to,
                     const std::function<void(const ChangedRange&)>& add);
  // Makes a version with what `fill` writes over `base` (empty: over nothing, or over the template
  // with that content, and the volume is made). Current is put back to `base` before, unless it is
  // like it. EBUSY while a writer is connected; EINVAL when `base` is known to be another version
  // than `base_identity`; ENOENT when no template is that. A name or a note that the version cannot
  // have is refused before `fill` is called. When it fails, current is like `base`, and what it was
  // before, if that was something else, is a version.
  struct ImportedVersion {
    std::string base;
    VersionIdentity base_identity;
    uint64_t size_bytes = 0;
    NewVersion version;
    std::optional<ContentId> template_content{};
    std::string template_name{};  // that it probably has here, if that is known
  };
  VersionInfo import_version(const std::string& volume, const ImportedVersion& imported,
                             const std::function<void(Disk&)>& fill);
  // Makes a volume with what `fill` writes over nothing; when it fails there is none.
  VolumeInfo import_volume(const std::string& name, uint64_t size_bytes,
                           const std::function<void(Disk&)>& fill);

  // --- exports
  std::vector<ExportInfo> list_exports();
  // Opens an export for one connection; the volume stays open as long as any of its Disks. A
  // current version is locked for its peer: EBUSY naming the owner when another VM has it. For a
  // peer that only reads, "vm1" is "vm1@current".
  std::unique_ptr<Disk> open_export(std::string_view export_name, const Peer& peer,
                                    bool only_reads = false);
  // A frozen version as a disk of what it does not have from its volume's template, and what that
  // is. EINVAL when there is none.
  struct TemplateChanges {
    std::unique_ptr<Disk> disk;
    std::string template_name;
    ContentId template_content;
    uint64_t template_bytes = 0;
  };
  TemplateChanges open_template_changes(const std::string& volume, const std::string& version);

  // Removes what an interrupted creation or removal of a volume left behind; how many volumes.
  // EBUSY while volumes are being created or templates imported.
  uint64_t remove_orphans();
  // Gives back the space of removed versions, of all volumes that no other process has open. Waits.
  void reclaim();

  // Upkeep of the volumes that are open here, at once: a checkpoint, or a compaction of the log.
  void checkpoint(bool compacts);

  // Fills the places of a template's segments in the tier. ENOENT; EINVAL without a tier.
  Tier::WarmResult warm_template(const std::string& name, const Tier::Progress& progress);
  // Mends segments of a template that are damaged or missing, those of which the tier has a sound
  // copy; how many these are. Errors as warm_template().
  size_t repair_template(const std::string& name, const std::vector<Hash128>& segments);

  // --- the boot cache; nothing without one
  Boot* boot();
  // A volume or a template is named, as "template/NAME" where there are both
  BootStatus show_boot(const std::string& name);
  // Of all volumes and templates.
  std::vector<BootStatus> show_boots();
  // Ends the window of a volume; EINVAL when none is open.
  BootWindow end_boot(const std::string& volume);
  // Reads what it boots with into memory. EINVAL without a boot cache; see Boot::warm().
  BootWarm warm_boot(const std::string& name,
                     const std::function<void(uint64_t done_bytes, uint64_t bytes)>& progress,
                     const std::function<bool()>& interrupted);
  // What is known of how it boots, and what is in memory for that, goes.
  void forget_boot(const std::string& name);
  // Removes what is known of templates that are gone.
  uint64_t remove_boot_orphans();

  // Mends what check_store() has found and can be mended without guessing, each volume with its
  // lock held; what keeps one from being mended is noted. To be looked at again afterwards.
  void repair(Findings& findings);

  StoreStats stats();
  // What is on the headers of all volumes, open or not: a small read of each.
  std::vector<VolumeStats> noted_volumes();
  StoreSpace space();
  // The same in a time that does not grow with the data: of volumes what was noted, of segments
  // what the first few hundred take, which are a fair sample, being named by hashes.
  StoreSpace estimate_space();
  StoreFileSystems file_systems();
  // Whether this process has the volume open for writing.
  bool is_open(const std::string& volume);

  // Who may write a volume, as far as can be told without opening it.
  LockInfo show_lock(const std::string& volume);
  // Puts out the VM that has the volume, or ends what a server left that died: that VM, and all
  // that had it before, never get the volume again. EBUSY when the epoch is another one by now, or
  // when another process has the volume; EINVAL when no VM has it. What it was before.
  LockInfo break_lock(const std::string& volume, uint64_t epoch);
  // For so long the VM that has the volume may have another connection beside the one that it has,
  // as a VM needs it that goes over to a new one. EINVAL when no VM has it here.
  void let_join(const std::string& volume, std::chrono::seconds duration);
  // For so long the VM with this token may come, and stand by until the one that has the volume
  // has gone or has stopped changing it: then it gets it, and that one never does again. EBUSY
  // when somebody stands by already; EINVAL when no VM has the volume, or for a token that cannot
  // get it. What it is then.
  LockInfo hand_over(const std::string& volume, const std::string& token,
                     std::chrono::seconds duration);
  // That is off, and the VM that stands by, if one does, never gets it. EINVAL when it was not on.
  LockInfo cancel_hand_over(const std::string& volume);

 private:
  static void init(Backend& backend, Backend& for_identity, const std::string& segments);

  friend class StoreRepair;

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tplstore
