// Sorts and joins what a profile names, claims it, reads it, and lets it in.
#include "boot/prefetch.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>

namespace tplstore {
namespace {

constexpr uint64_t kGapBlocksMax = 64;
constexpr size_t kBufferBytes[] = {size_t{4} << 20, size_t{1} << 20, size_t{256} << 10};
constexpr size_t kHugePageBytes = size_t{2} << 20;

// Cells of one file that are read together: places [first, last) of a list.
struct Request {
  size_t first;
  size_t last;
  uint64_t blocks;  // with the gaps
};

// Sorts the places by where they are, files in the order in which the disk has them, and joins what
// is near enough. No place is longer than a request.
std::vector<Request> form_requests(std::vector<CellPlace>& places, uint64_t request_blocks) {
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i].count <= request_blocks) continue;
    CellPlace rest = places[i];
    const auto done = static_cast<uint32_t>(request_blocks);
    places[i].count = done;
    rest.block += done;
    rest.first += done;
    rest.count -= done;
    places.push_back(std::move(rest));
  }
  std::map<const CellFile*, uint64_t> begins;
  for (const CellPlace& place : places) {
    const auto [begin, is_new] = begins.emplace(place.file.get(), place.first);
    if (!is_new) begin->second = std::min(begin->second, place.first);
  }
  std::ranges::sort(places, {}, [&](const CellPlace& place) {
    return std::tuple(begins.at(place.file.get()), place.file.get(), place.block);
  });
  std::vector<Request> requests;
  uint64_t begin = 0, end = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    const CellPlace& place = places[i];
    const uint64_t place_end = uint64_t{place.block} + place.count;
    if (i > 0 && places[i - 1].file == place.file && place.block <= end + kGapBlocksMax &&
        std::max(end, place_end) - begin <= request_blocks) {
      end = std::max(end, place_end);
      requests.back().last = i + 1;
      requests.back().blocks = end - begin;
      continue;
    }
    requests.push_back({i, i + 1, place.count});
    begin = place.block;
    end = place_end;
  }
  return requests;
}

}  // namespace

std::optional<PrefetchBuffer> PrefetchBuffer::make(CellMemory& memory) {
  for (const size_t size : kBufferBytes) {
    if (size > memory.stats().cap / 4) continue;
    auto beside = memory.hold_beside(size);
    if (!beside) continue;
    // The fewer pieces of memory it is, the fewer requests the kernel makes of one. Only advice.
    const bool is_huge = size % kHugePageBytes == 0;
    void* const at = std::aligned_alloc(is_huge ? kHugePageBytes : kBlockBytes, size);
    if (at == nullptr) continue;
    if (is_huge) madvise(at, size, MADV_HUGEPAGE);
    return PrefetchBuffer(std::move(*beside), Memory(static_cast<std::byte*>(at), &std::free),
                          size);
  }
  return std::nullopt;
}

// Cells that are being read: they are claimed, and what lies between them is read with them.
struct Prefetch::Flight {
  CellSource* source;
  uint64_t begin;  // of the file, in blocks
  MutableBytes bytes;
  struct Wanted {
    const CellPlace* place;
    CellMemory::Claim claim;
  };
  std::vector<Wanted> wanted;
};

Prefetch::Prefetch(CellMemory& memory, std::shared_ptr<const Profile> profile,
                   const HashSecret& secret)
    : memory_(memory), profile_(std::move(profile)), hashes_(*profile_), secret_(secret) {}

bool Prefetch::step(BootDisk& disk, CellMemory::Window& window, MutableBytes buffer) {
  if (has_pack()) {
    step_pack(window, buffer);
    return true;
  }
  const uint64_t room = buffer.size() / kBlockBytes;
  if (planned_.empty() && !plan_batch(disk, room)) return false;
  std::vector<CellRun> runs;
  uint64_t blocks = 0;
  for (size_t i = 0; i < kRequestsMax && !planned_.empty(); ++i) {
    blocks += planned_.front().blocks;
    if (blocks > room) break;
    runs.insert(runs.end(), planned_.front().runs.begin(), planned_.front().runs.end());
    planned_.pop_front();
  }
  disk.with_cells(runs, [&](std::span<const CellPlace> places) {
    read({places.begin(), places.end()}, window, buffer);
  });
  return true;
}

bool Prefetch::plan_batch(BootDisk& disk, uint64_t request_blocks) {
  while (planned_.empty() && run_ < profile_->runs.size()) {
    std::vector<CellRun> batch;
    for (uint64_t room = batch_blocks_; room > 0 && run_ < profile_->runs.size();) {
      const ProfileRun& run = profile_->runs[run_];
      const auto count = static_cast<uint32_t>(std::min<uint64_t>(run.count - run_at_, room));
      batch.push_back({run.source, run.first + run_at_, count});
      room -= count;
      run_at_ += count;
      passed_bytes_ += uint64_t{count} * kBlockBytes;
      if (run_at_ < run.count) continue;
      ++run_;
      run_at_ = 0;
    }
    batch_blocks_ = kBatchBlocksMax;
    disk.with_cells(batch, [&](std::span<const CellPlace> found) {
      std::vector<CellPlace> places(found.begin(), found.end());
      for (const CellPlace& place : places) placed_bytes_ += uint64_t{place.count} * kBlockBytes;
      for (const Request& request : form_requests(places, request_blocks)) {
        Planned planned{{}, request.blocks};
        for (size_t i = request.first; i < request.last; ++i)
          planned.runs.push_back(
              {batch.at(places[i].run).source, places[i].first, places[i].count});
        planned_.push_back(std::move(planned));
      }
    });
  }
  return !planned_.empty();
}

void Prefetch::read(std::vector<CellPlace> places, CellMemory::Window& window,
                    MutableBytes buffer) {
  const GracePeriod::Request in_flight(memory_.requests());
  std::vector<Flight> flights;
  uint64_t claimed_bytes = 0;
  for (const Request& request : form_requests(places, buffer.size() / kBlockBytes)) {
    // The map may have changed since they were planned.
    if (flights.size() == kRequestsMax || request.blocks * kBlockBytes > buffer.size()) break;
    Flight flight{places[request.first].source, UINT64_MAX, {}, {}};
    uint64_t end = 0;
    for (size_t i = request.first; i < request.last; ++i) {
      CellMemory::Claim claim =
          memory_.claim(*places[i].file, places[i].block, places[i].count, window);
      if (claim.parts().empty()) continue;
      for (const CellMemory::Claim::Part& part : claim.parts()) claimed_bytes += part.memory.size();
      flight.begin = std::min(flight.begin, claim.parts().front().first);
      end = std::max(end, claim.parts().back().first + claim.parts().back().count());
      flight.wanted.push_back({&places[i], std::move(claim)});
    }
    if (flight.wanted.empty()) continue;
    flight.bytes = buffer.first((end - flight.begin) * kBlockBytes);
    buffer = buffer.subspan(flight.bytes.size());
    flights.push_back(std::move(flight));
  }
  if (flights.empty()) return;
  requests_ += flights.size();
  const auto read_all = [](std::span<Flight> some) {
    ReadPlan plan;
    for (const Flight& flight : some)
      flight.source->plan_stored(flight.begin * kBlockBytes, flight.bytes, plan);
    plan.run();
  };
  const uint64_t taken_before = taken_bytes_;
  bool is_read = true;
  try {
    read_all(flights);
  } catch (const Error&) {
    is_read = false;  // not all: so one by one
  }
  for (Flight& flight : flights) {
    try {
      if (!is_read) read_all({&flight, 1});
      take_in(flight);
    } catch (const Error&) {
      // Who needs it will read it, or be told why not.
    }
    flight.wanted.clear();
  }
  missed_bytes_ += claimed_bytes - (taken_bytes_ - taken_before);
}

void Prefetch::take_in(Flight& flight) {
  for (auto& wanted : flight.wanted) {
    const CellPlace& place = *wanted.place;
    CellMemory::Claim& claim = wanted.claim;
    for (const CellMemory::Claim::Part& part : claim.parts()) {
      const auto take = [&](uint64_t first, uint64_t count) {
        const Bytes bytes =
            flight.bytes.subspan((first - flight.begin) * kBlockBytes, count * kBlockBytes);
        if (!are_sound(flight, place, first, bytes)) return false;
        std::memcpy(part.memory.data() + (first - part.first) * kBlockBytes, bytes.data(),
                    bytes.size());
        claim.publish(first, count);
        taken_bytes_ += bytes.size();
        return true;
      };
      if (take(part.first, part.count())) continue;
      for (uint64_t i = 0; i < part.count(); ++i) take(part.first + i, 1);
    }
  }
}

// By the profile's hashes, where it has them and they agree; else by whoever stores the cells.
bool Prefetch::are_sound(const Flight& flight, const CellPlace& place, uint64_t first,
                         Bytes blocks) const {
  bool all_are = place.key.kind == CellFileKey::Kind::kSegment;
  for (uint64_t i = 0; all_are && i < blocks.size() / kBlockBytes; ++i) {
    const Hash128 wanted = hashes_.find(place.first + (first - place.block) + i);
    all_are = wanted != Hash128{} &&
              wanted == content_hash(blocks.subspan(i * kBlockBytes, kBlockBytes), secret_);
  }
  return all_are || flight.source->are_sound(static_cast<uint32_t>(first), blocks);
}

void Prefetch::take_pack(std::unique_ptr<const Pack> pack, CellMemory::Beside beside) {
  pack_ = std::move(pack);
  pack_beside_ = std::move(beside);
  pack_at_ = piece_at_ = 0;
  piece_ = 0;
}

void Prefetch::leave_pack() {
  pack_.reset();
  pack_beside_.reset();
}

void Prefetch::step_pack(CellMemory::Window& window, MutableBytes buffer) {
  const GracePeriod::Request in_flight(memory_.requests());
  const PackDescription& pack = pack_->description();
  const uint32_t begin = pack_at_;
  const auto count = static_cast<uint32_t>(
      std::min<uint64_t>(buffer.size() / kBlockBytes, pack.block_count() - begin));
  const uint64_t request_blocks = buffer.size() / kRequestsMax / kBlockBytes;

  struct Stretch {
    uint32_t at;     // block of the pack
    uint32_t first;  // block of the file that it is
    CellMemory::Claim claim;
  };
  std::vector<std::shared_ptr<CellFile>> files;
  std::vector<Stretch> stretches;
  std::array<bool, kRequestsMax> is_wanted{};
  while (pack_at_ < begin + count) {
    const PackPiece& piece = pack.pieces[piece_];
    const uint32_t length = std::min(piece.count - piece_at_, begin + count - pack_at_);
    files.push_back(memory_.file(piece.key()));
    const uint32_t first = piece.first + piece_at_;
    Stretch stretch{pack_at_, first, memory_.claim(*files.back(), first, length, window)};
    for (const auto& part : stretch.claim.parts()) {
      const uint64_t from = pack_at_ - begin + (part.first - first);
      for (uint64_t i = from / request_blocks; i * request_blocks < from + part.count(); ++i)
        is_wanted.at(i) = true;
    }
    if (!stretch.claim.parts().empty()) stretches.push_back(std::move(stretch));
    pack_at_ += length;
    piece_at_ += length;
    if (piece_at_ == piece.count) {
      ++piece_;
      piece_at_ = 0;
    }
  }
  const bool is_last = pack_at_ == pack.block_count();
  if (stretches.empty()) {
    if (is_last) leave_pack();
    return;
  }

  ReadPlan plan;
  for (uint64_t i = 0; i < kRequestsMax; ++i) {
    const uint64_t from = i * request_blocks;
    if (!is_wanted[i]) continue;
    const uint64_t blocks = std::min<uint64_t>(request_blocks, count - from);
    pack_->plan_read(begin + static_cast<uint32_t>(from),
                     buffer.subspan(from * kBlockBytes, blocks * kBlockBytes), plan);
    ++requests_;
  }
  try {
    plan.run();
  } catch (const Error&) {
    leave_pack();  // then without it
    return;
  }
  for (Stretch& stretch : stretches)
    for (const auto& part : stretch.claim.parts())
      for (uint64_t i = 0; i < part.count(); ++i) {
        const auto index = static_cast<uint32_t>(stretch.at + (part.first - stretch.first) + i);
        const Bytes block = buffer.subspan(size_t{index - begin} * kBlockBytes, kBlockBytes);
        if (!pack_->is_sound(index, block)) continue;
        std::memcpy(part.memory.data() + i * kBlockBytes, block.data(), kBlockBytes);
        stretch.claim.publish(part.first + i, 1);
        taken_bytes_ += kBlockBytes;
      }
  if (is_last) leave_pack();
}

}  // namespace tplstore
