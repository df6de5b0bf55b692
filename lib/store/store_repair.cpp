// Mends what check_store() has found, one kind after the other: first what others need to be done,
// last what is removed. Volumes are opened as their owners open them, and whatever keeps those out
// keeps this out too.
#include <cerrno>
#include <map>
#include <set>

#include "backend/layout.h"
#include "lock/lock_check.h"
#include "store/store_check.h"
#include "store/store_impl.h"
#include "template/gc_lock.h"
#include "template/manifest.h"
#include "template/segment.h"
#include "template/template_catalog.h"
#include "template/template_check.h"
#include "template/template_tables.h"
#include "volume/volume_check.h"

namespace tplstore {

class StoreRepair {
 public:
  StoreRepair(Store& store, Store::Impl& impl, Findings& findings)
      : store_(store), impl_(impl), findings_(findings), faults_(findings.all()) {
    for (const Finding& fault : faults_) {
      if (!fault.is_fault || fault.repair != Repair::kNone) continue;
      if (!fault.volume.is_nil()) damaged_.insert(fault.volume);
      if (fault.object.starts_with(paths::kVolumeNames)) are_names_sound_ = false;
    }
  }

  void run() {
    for (const Repair kind : {Repair::kGcLock, Repair::kHeader, Repair::kPin, Repair::kClaims,
                              Repair::kReopen, Repair::kCells, Repair::kDerived, Repair::kTables,
                              Repair::kSegment, Repair::kFolder, Repair::kCollect}) {
      std::set<std::string> done;  // one opening mends several faults
      for (const Finding& fault : faults_) {
        if (!fault.is_fault || fault.repair != kind) continue;
        const bool is_of_one = kind == Repair::kDerived || kind == Repair::kSegment;
        if (done.insert(is_of_one ? fault.object : fault.subject).second) mend(fault);
      }
    }
  }

 private:
  void mend(const Finding& fault);
  void mend_one(const Finding& fault);
  std::unique_ptr<HeldLock> lock(const Finding& fault);
  void pin(const Finding& fault);
  void reopen(const Finding& fault);
  void remove_folder(const Finding& fault);
  void write_tables(const Finding& fault);
  void mend_segment(const Finding& fault);

  // What the subject is called.
  static std::string name_of(const Finding& fault) {
    return fault.subject.substr(fault.subject.find(' ') + 1);
  }
  Backend& backend() { return *impl_.backend; }

  Store& store_;
  Store::Impl& impl_;
  Findings& findings_;
  const std::vector<Finding> faults_;
  std::set<Uuid> damaged_;  // volumes that have what cannot be mended
  bool are_names_sound_ = true;
};

void Store::repair(Findings& findings) { StoreRepair(*this, *impl_, findings).run(); }

void StoreRepair::mend(const Finding& fault) {
  findings_.begin(fault.subject, fault.volume);
  try {
    mend_one(fault);
  } catch (const Error& error) {
    findings_.note("", fmt::format("not repaired: {}", error.what()));
    // What it is pinned for may go when its parent is opened.
    if (fault.repair == Repair::kPin) {
      const auto header = impl_.header_if_readable(fault.volume);
      if (header) damaged_.insert(header->parent);
    }
  }
}

void StoreRepair::mend_one(const Finding& fault) {
  const bool needs_sound_volume = fault.repair == Repair::kReopen || fault.repair == Repair::kCells;
  if (needs_sound_volume && damaged_.contains(fault.volume))
    fail(EIO, fault.subject,
         "has damage that cannot be repaired, and what is left of it is not touched");
  const std::string folder = volume_folder(fault.volume);
  switch (fault.repair) {
    case Repair::kGcLock:
      backend().put_new(std::string(paths::kGcLock), {});
      return;
    case Repair::kHeader: {
      const auto held = lock(fault);
      mend_header(backend(), folder, fault.volume);
      return;
    }
    case Repair::kPin:
      return pin(fault);
    case Repair::kClaims: {
      if (fault.volume.is_nil()) return remove_stale_gc_claims(backend());
      const auto held = lock(fault);
      remove_stale_claims(backend(), folder, fault.volume);
      return;
    }
    case Repair::kReopen:
      return reopen(fault);
    case Repair::kCells:
      return give_back_lone_cells(backend(), fault.volume, name_of(fault));
    case Repair::kDerived: {
      Backend& in = fault.object.starts_with(paths::kTables) ? impl_.origin : backend();
      in.remove(fault.object);
      in.sync_folder(fault.object.substr(0, fault.object.rfind('/')));
      return;
    }
    case Repair::kTables:
      return write_tables(fault);
    case Repair::kSegment:
      return mend_segment(fault);
    case Repair::kFolder:
      return remove_folder(fault);
    case Repair::kCollect:
      gc(store_.templates(), [this] { store_.template_users(); });
      return;
    case Repair::kNone:
      return;
  }
}

// Of a volume that nobody has. Between hosts locks need not meet, so that there its header, and
// claims behind that, must say the same.
std::unique_ptr<HeldLock> StoreRepair::lock(const Finding& fault) {
  const std::string folder = volume_folder(fault.volume);
  auto held = backend().try_lock(lock_name(folder), LockMode::kExclusive);
  if (!held) fail(EBUSY, fault.subject, "is in use");
  if (backend().kind().reach == StorageKind::Reach::kOneHost) return held;
  const VolumeHeader header = read_header(backend(), folder, fault.volume);
  if (header.is_taken != 0 || find_claims(backend(), folder, fault.volume, header.epoch).other)
    fail(EBUSY, fault.subject,
         "may be in use on another host: see 'tplstore lock show', and try again when it is not");
  return held;
}

void StoreRepair::pin(const Finding& fault) {
  const VolumeHeader header = read_header(backend(), volume_folder(fault.volume), fault.volume);
  if (damaged_.contains(header.parent))
    fail(EIO, fault.subject, "its parent has damage that cannot be repaired");
  impl_.with_owner(header.parent, header.parent.text(), [&](Volume& parent) {
    parent.forks().pin_again(header.parent_version, fault.volume);
  });
}

void StoreRepair::reopen(const Finding& fault) {
  impl_.with_owner(fault.volume, name_of(fault), [this](Volume& volume) {
    // As long as names are damaged, nobody knows which forks are gone for good.
    if (are_names_sound_) volume.forks().drop_dead();
    volume.space().run();
  });
}

void StoreRepair::remove_folder(const Finding& fault) {
  const auto held = hold_gc_lock(backend(), LockMode::kExclusive, fault.subject);
  if (!held) fail(EBUSY, fault.subject, "volumes are being created or templates imported");
  const auto names = impl_.volume_names();
  impl_.check_names(names);
  if (impl_.can_be_restored(fault.volume)) fail(EBUSY, fault.subject, "is kept to be restored");
  if (names.contains(fault.volume)) fail(EBUSY, fault.subject, "has got a name meanwhile");
  // It may have been written since it was looked at.
  const auto header = impl_.header_if_readable(fault.volume);
  if (header && header->epoch > 0) fail(EBUSY, fault.subject, "was in use meanwhile");
  impl_.remove_unneeded(fault.volume, fault.volume.text());
}

void StoreRepair::write_tables(const Finding& fault) {
  const HeldManifest held = hold_manifest(backend(), name_of(fault));
  backend().remove(template_tables_path(held.manifest));
  put_template_tables(backend(), held.manifest, impl_.blocks, impl_.identity.secret);
}

void StoreRepair::mend_segment(const Finding& fault) {
  Hash128 segment;
  if (!parse_hash(fault.object.substr(fault.object.rfind('/') + 1), segment)) return;
  if (store_.repair_template(name_of(fault), {segment}) == 0)
    fail(EIO, fault.object, "this host's tier has no sound copy of it");
}

}  // namespace tplstore
