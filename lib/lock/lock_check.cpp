// The header says what is stale of the claims.
#include "lock/lock_check.h"

#include <cerrno>
#include <charconv>
#include <vector>

#include "base/text.h"
#include "lock/claims.h"

namespace tplstore {
namespace {

// The epochs of all claims in a folder.
std::vector<uint64_t> claimed_epochs(Backend& backend, const std::string& folder) {
  constexpr std::string_view kPrefix = "owner.";
  std::vector<uint64_t> epochs;
  for (const std::string& part : backend.list(folder)) {
    if (!part.starts_with(kPrefix)) continue;
    uint64_t epoch = 0;
    const char* const begin = part.data() + kPrefix.size();
    const char* const end = part.data() + part.size();
    if (std::from_chars(begin, end, epoch).ptr == end && begin != end) epochs.push_back(epoch);
  }
  return epochs;
}

// Whether the header is past a claim. One on an epoch to come is passed over by this host when it
// is its own.
bool is_past(uint64_t claimed, uint64_t epoch) {
  return claimed < epoch && epoch - claimed >= kClaimsKept;
}

void check_claims(Backend& backend, const std::string& folder, const VolumeHeader& header,
                  Findings& findings) {
  const ClaimsFound found = find_claims(backend, folder, header.volume, header.epoch);
  if (found.other)
    findings.note(claim_name(folder, found.other->epoch),
                  fmt::format("host {} claims the volume, or did when it went down: see 'tplstore "
                              "lock show'",
                              printable(found.other->host_name)));
  for (const uint64_t epoch : claimed_epochs(backend, folder)) {
    if (is_past(epoch, header.epoch))
      findings.fault(claim_name(folder, epoch),
                     fmt::format("a claim that is stale: the header is at epoch {}", header.epoch),
                     Repair::kClaims);
    else if (epoch > header.epoch && !found.other && !backend.is_locked(lock_name(folder)))
      findings.fault(claim_name(folder, epoch),
                     "a claim that nothing came of: who made it has ended", Repair::kClaims);
  }
}

}  // namespace

std::optional<VolumeHeader> check_lock(Backend& backend, const std::string& folder,
                                       const Uuid& volume, Findings& findings) {
  const std::string name = header_name(folder);
  std::optional<VolumeHeader> header;
  try {
    const auto object = backend.open(name, Access::kRead, Purpose::kMetadata);
    HeaderSlots slots(kHeaderMagic);
    header = read_header(*object, folder, volume, slots);
    if (!slots.has_both(*object))
      findings.fault(name, "one of its two slots fails its checksum; the other one serves",
                     Repair::kHeader);
  } catch (const Error& error) {
    if (error.code() == ENOENT)
      findings.fault(name,
                     "is missing, so the volume cannot be opened: put it back from a backup, or "
                     "remove the volume");
    else
      findings.fault(error);
  }
  for (const std::string& lock : {lock_name(folder), readers_name(folder)}) {
    try {
      backend.is_locked(lock);
    } catch (const Error& error) {
      if (error.code() == ENOENT)
        findings.fault(lock,
                       "is missing, so nobody can tell whether the volume is in use: make an empty "
                       "file of that name when you know that no host has it");
      else
        findings.fault(error);
    }
  }
  try {
    if (header) check_claims(backend, folder, *header, findings);
  } catch (const Error& error) {
    if (error.code() != ENOENT) findings.fault(error);  // else that of the lock is missing
  }
  return header;
}

void mend_header(Backend& backend, const std::string& folder, const Uuid& volume) {
  const auto object = backend.open(header_name(folder), Access::kWrite, Purpose::kMetadata);
  settle(*object);
  HeaderSlots slots(kHeaderMagic);
  const VolumeHeader header = read_header(*object, folder, volume, slots);
  slots.write(*object, header);
}

void remove_stale_claims(Backend& backend, const std::string& folder, const Uuid& volume) {
  if (backend.kind().reach != StorageKind::Reach::kOneHost)
    fail(EBUSY, folder,
         "hosts may share the storage, so that nobody can tell which claims are stale: remove the "
         "objects 'owner.*' when no host has the volume");
  const uint64_t epoch = read_header(backend, folder, volume).epoch;
  for (const uint64_t claimed : claimed_epochs(backend, folder))
    if (is_past(claimed, epoch) || claimed > epoch) backend.remove(claim_name(folder, claimed));
  backend.sync_folder(folder);
}

}  // namespace tplstore
