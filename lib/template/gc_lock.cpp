// A claim has its host in its name; what is in it is for people.
#include "template/gc_lock.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <thread>

#include "backend/layout.h"
#include "backend/lock.h"
#include "base/host.h"
#include "base/text.h"
#include "base/units.h"

namespace tplstore {
namespace {

using std::chrono::milliseconds;

constexpr std::string_view kAlone = ".alone";
constexpr std::string_view kShared = ".shared";
constexpr size_t kClaimBytesMax = 512;
// Who lets go has the lock alone for a moment.
constexpr milliseconds kLettingGoMax{500};
// Of two that come at once one waits for the other to give way.
constexpr milliseconds kGivingWayMax{2000};
constexpr milliseconds kLookAtClaimsAgain{20};

const Uuid& own_id() {
  const HostIdentity& host = this_host();
  return host.host_id.is_nil() ? host.boot_id : host.host_id;
}

std::string claim_name(LockMode mode) {
  return fmt::format("{}/{}{}", paths::kGcClaims, own_id().text(),
                     mode == LockMode::kShared ? kShared : kAlone);
}

void make_claim(Backend& backend, LockMode mode) {
  const std::string who = fmt::format("host {} (pid {}) since {}", this_host().host_name, getpid(),
                                      format_time(now_unix_ns()));
  try {
    // One that is there has kept others away for as long.
    backend.put_new(claim_name(mode), as_bytes(who));
  } catch (const Error& error) {
    if (error.code() != ENOSPC && error.code() != EDQUOT) throw;
    try {
      backend.create(claim_name(mode), 0, Purpose::kMetadata);
    } catch (const Error& exists) {
      if (exists.code() != EEXIST) throw;
    }
  }
}

struct Other {
  Uuid host;
  std::string name;
  bool is_alone;
};
// A claim of another host that does not go together with one of ours.
std::optional<Other> find_other(Backend& backend, LockMode mode) {
  const HostIdentity& host = this_host();
  for (const std::string& name : backend.list(std::string(paths::kGcClaims))) {
    Other other{{}, fmt::format("{}/{}", paths::kGcClaims, name), name.ends_with(kAlone)};
    const size_t dot = name.find('.');
    const bool is_claim = dot != std::string::npos && parse_uuid(name.substr(0, dot), other.host) &&
                          (other.is_alone || name.ends_with(kShared));
    if (!is_claim || other.host == own_id() || host.is_same(other.host, other.host)) continue;
    if (other.is_alone || mode == LockMode::kExclusive) return other;
  }
  return std::nullopt;
}

[[noreturn]] void fail_claimed(Backend& backend, const std::string& object, const Other& other) {
  std::string who = fmt::format("host {}", other.host.text());
  if (const auto content = backend.get(other.name, kClaimBytesMax); content && !content->empty())
    who = printable(to_text(*content));
  fail(EBUSY, object,
       "{} {}, or did when it went down: wait until that is done; 'tplstore gc' on that host frees "
       "what it has left, and if it is off for good, 'rm {}/{}' does",
       who, other.is_alone ? "removes templates or runs gc" : "imports templates or makes volumes",
       backend.describe(), other.name);
}

class ClaimedLock final : public HeldLock {
 public:
  ClaimedLock(Backend& backend, LockMode mode, std::unique_ptr<HeldLock> lock)
      : backend_(backend), mode_(mode), lock_(std::move(lock)) {}
  ~ClaimedLock() override {
    try {
      if (mode_ == LockMode::kShared) {
        // Nobody else of this host has it then, or that one does the rest.
        lock_.reset();
        lock_ = backend_.try_lock(std::string(paths::kGcLock), LockMode::kExclusive);
      }
      if (lock_) backend_.remove(claim_name(mode_));
    } catch (const std::exception&) {
      // As after a kill.
    }
  }

  void claim(const std::string& object) {
    make_claim(backend_, mode_);
    const auto deadline = std::chrono::steady_clock::now() + kGivingWayMax;
    while (const auto other = find_other(backend_, mode_)) {
      if (other->host < own_id() || std::chrono::steady_clock::now() >= deadline)
        fail_claimed(backend_, object, *other);
      std::this_thread::sleep_for(kLookAtClaimsAgain);
    }
    // Left by one that was killed: the lock of this host is had otherwise now.
    backend_.remove(
        claim_name(mode_ == LockMode::kShared ? LockMode::kExclusive : LockMode::kShared));
  }

 private:
  Backend& backend_;
  const LockMode mode_;
  std::unique_ptr<HeldLock> lock_;
};

}  // namespace

std::unique_ptr<HeldLock> hold_gc_lock(Backend& backend, LockMode mode, const std::string& object,
                                       milliseconds wait) {
  const bool is_one_hosts = backend.kind().reach == StorageKind::Reach::kOneHost;
  auto lock = try_lock_for(backend, std::string(paths::kGcLock), mode,
                           is_one_hosts ? wait : std::max(wait, kLettingGoMax));
  if (is_one_hosts || !lock) return lock;
  auto claimed = std::make_unique<ClaimedLock>(backend, mode, std::move(lock));
  claimed->claim(object);
  return claimed;
}

std::vector<std::string> find_stale_gc_claims(Backend& backend, bool is_held) {
  std::vector<std::string> stale;
  for (const LockMode mode : {LockMode::kShared, LockMode::kExclusive}) {
    const std::string name = claim_name(mode);
    if (!backend.get(name, kClaimBytesMax)) continue;
    if (is_held || !backend.is_locked(std::string(paths::kGcLock))) stale.push_back(name);
  }
  return stale;
}

}  // namespace tplstore
