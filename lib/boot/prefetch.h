// Reads what a profile has into the memory, ahead of the guest that will ask for it.
//
// 4 MiB of the profile first, in its order, then 128 MiB at a time, for it is ahead of the guest by
// then and finds more neighbours. What these are is sorted by place, neighbours with gaps of up to
// 256 KiB between them are one request, and at most 4 requests are read at once, of 4 MiB in all.
// Cells are claimed right before they are read, so a guest that misses another one reads for
// itself. Where there are packs their blocks come first.
//
// Everything is verified before it enters; what cannot be read, or is not what it should be, is
// left to who asks for it.
//
// Thread safety: one thread. Errors: what BootDisk::with_cells() throws; std::bad_alloc.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "boot/boot_disk.h"
#include "boot/cell_memory.h"
#include "boot/pack.h"
#include "boot/profile.h"

namespace tplstore {

// What requests are read into; counted against the memory's cap.
class PrefetchBuffer {
 public:
  // Smaller where there is not much room; nothing where there is none.
  static std::optional<PrefetchBuffer> make(CellMemory& memory);
  MutableBytes bytes() const { return {bytes_.get(), size_}; }

 private:
  using Memory = std::unique_ptr<std::byte[], decltype(&std::free)>;
  PrefetchBuffer(CellMemory::Beside beside, Memory bytes, size_t size)
      : beside_(std::move(beside)), bytes_(std::move(bytes)), size_(size) {}

  CellMemory::Beside beside_;
  Memory bytes_;
  size_t size_;
};

class Prefetch {
 public:
  static constexpr size_t kRequestsMax = 4;
  static constexpr uint64_t kBatchBlocksMax = 32768;

  // The secret is that of the profile's hashes.
  Prefetch(CellMemory& memory, std::shared_ptr<const Profile> profile, const HashSecret& secret);

  // What a pack has is read before what is left of the profile. One at a time.
  void take_pack(std::unique_ptr<const Pack> pack, CellMemory::Beside beside);
  // Reads the next few requests in the name of a window; false when there is nothing left.
  bool step(BootDisk& disk, CellMemory::Window& window, MutableBytes buffer);

  bool has_pack() const { return pack_ != nullptr; }       // of which not all is read yet
  uint64_t requests() const { return requests_; }          // that were read
  uint64_t taken_bytes() const { return taken_bytes_; }    // that have entered
  uint64_t passed_bytes() const { return passed_bytes_; }  // of the profile, taken or not
  uint64_t placed_bytes() const { return placed_bytes_; }  // of these, what the disk still has
  uint64_t missed_bytes() const { return missed_bytes_; }  // of these, what could not be read

 private:
  struct Flight;
  struct Planned {
    std::vector<CellRun> runs;
    uint64_t blocks;  // with the gaps between them
  };

  void step_pack(CellMemory::Window& window, MutableBytes buffer);
  void leave_pack();
  bool plan_batch(BootDisk& disk, uint64_t request_blocks);
  void read(std::vector<CellPlace> places, CellMemory::Window& window, MutableBytes buffer);
  void take_in(Flight& flight);
  bool are_sound(const Flight& flight, const CellPlace& place, uint64_t first, Bytes blocks) const;

  CellMemory& memory_;
  const std::shared_ptr<const Profile> profile_;
  const ProfileHashes hashes_;
  const HashSecret secret_;
  std::optional<CellMemory::Beside> pack_beside_;
  std::unique_ptr<const Pack> pack_;
  uint32_t pack_at_ = 0;          // its next block
  size_t piece_ = 0;              // which is in this piece,
  uint32_t piece_at_ = 0;         // at this block
  size_t run_ = 0;                // the next of the profile,
  uint32_t run_at_ = 0;           // from this block on
  uint64_t batch_blocks_ = 1024;  // how much of it is sorted next
  std::deque<Planned> planned_;   // requests of this batch
  uint64_t requests_ = 0;
  uint64_t taken_bytes_ = 0;
  uint64_t passed_bytes_ = 0;
  uint64_t placed_bytes_ = 0;
  uint64_t missed_bytes_ = 0;
};

}  // namespace tplstore
