// The requests of a volume: reads, writes, trims. See volume/volume.h for the order of steps.
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>

#include "volume/request_times.h"
#include "volume/volume.h"

namespace tplstore {
namespace {

constexpr uint64_t kCacheStepBytes = 128 << 10;
static_assert(kFromTemplate == kSourceUnmapped);

uint64_t first_block(uint64_t offset) { return offset / kBlockBytes; }
uint64_t block_count(uint64_t offset, uint64_t length) {
  return (offset + length - 1) / kBlockBytes - first_block(offset) + 1;
}

}  // namespace

// A block that a first write covers in part only.
struct Volume::Edge {
  bool is_split = false;
  uint64_t block = 0;
  // What `data` was read from, whose bytes for this block never change; nothing was read when the
  // block was current's, whose do.
  std::optional<uint32_t> source;
  alignas(kBlockBytes) std::array<std::byte, kBlockBytes> data;
};

namespace {

// What is counted of each kind of request.
struct Counted {
  Counter requests;
  std::optional<Counter> bytes;
  Counter time_ns;
};
constexpr Counted kCounted[kRequestKindCount] = {
    {Counter::kReads, Counter::kReadBytes, Counter::kReadNs},
    {Counter::kWrites, Counter::kWriteBytes, Counter::kWriteNs},
    {Counter::kTrims, Counter::kTrimBytes, Counter::kTrimNs},
    {Counter::kZeroes, Counter::kZeroBytes, Counter::kZeroNs},
    {Counter::kFlushes, {}, Counter::kFlushNs}};

// Of one request, until it has ended, however that is.
template <RequestKind kind>
class RequestClock {
 public:
  RequestClock(Counters::Line& counters, RequestTimes* times)
      : counters_(counters), times_(times) {}
  ~RequestClock() {
    const auto ns = static_cast<uint64_t>(std::chrono::nanoseconds(Clock::now() - began_).count());
    counters_.add(kCounted[static_cast<size_t>(kind)].time_ns, ns);
    if (times_ != nullptr) times_->add(kind, ns);
  }
  RequestClock(const RequestClock&) = delete;
  RequestClock& operator=(const RequestClock&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  Counters::Line& counters_;
  RequestTimes* const times_;
  const Clock::time_point began_ = Clock::now();
};

}  // namespace

template <RequestKind kind, typename Operation>
void Volume::counted([[maybe_unused]] uint64_t length, Operation operation) {
  constexpr Counted kCounters = kCounted[static_cast<size_t>(kind)];
  Counters::Line& counters = counters_.own();
  counters.add(kCounters.requests);
  if constexpr (kCounters.bytes.has_value()) counters.add(*kCounters.bytes, length);
  const RequestClock<kind> clock(counters, open_.environment.times);
  try {
    operation();
  } catch (...) {
    counters.add(Counter::kErrors);
    throw;
  }
}

bool Volume::reads_as_hole(const Run& run) const {
  return run.source == kSourceZero ||
         (run.source == kSourceUnmapped && run.first >= open_.template_blocks);
}

// --- reading

void Volume::read(uint32_t version, uint64_t offset, MutableBytes into, ReadFollower* follower) {
  counted<RequestKind::kRead>(into.size(), [&] { read_range(version, offset, into, follower); });
}

void Volume::read_range(uint32_t version, uint64_t offset, MutableBytes into,
                        ReadFollower* follower) {
  if (into.empty()) return;
  open_.with_map([&](VolumeMap& map) {
    // What current's map leads to is in doubt then.
    if (version == 0) map.check_usable();
    RunList runs;
    map.find(version, {first_block(offset), block_count(offset, into.size())}, runs);
    read_runs(runs, offset, into, follower);
  });
}

// Reads what a lookup has found, in the request that has looked it up.
void Volume::read_runs(const RunList& runs, uint64_t offset, MutableBytes into,
                       ReadFollower* follower) {
  ReadPlan plan;
  CellWindow* window = nullptr;
  if (follower != nullptr) window = follower->begin_read(offset, into.size(), plan);
  uint64_t template_bytes = 0;
  uint64_t own_bytes = 0;
  size_t template_pieces = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const Run& run = runs[i];
    const uint64_t begin = std::max(run.first * kBlockBytes, offset);
    const uint64_t end = std::min((run.first + run.count) * kBlockBytes, offset + into.size());
    const MutableBytes part = into.subspan(begin - offset, end - begin);
    if (reads_as_hole(run)) {
      std::memset(part.data(), 0, part.size());
    } else if (run.source == kSourceUnmapped) {
      const size_t before = plan.size();
      if (window != nullptr) follower->touch(*window, kFromTemplate, run.first, run.count);
      open_.template_image->plan_read(begin, part, plan, window);
      template_pieces += plan.size() - before;
      if (plan.size() > before) template_bytes += part.size();
    } else {
      const size_t before = plan.size();
      DataFile& file = open_.files.get_frozen(run.source);
      if (file.cells && open_.is_frozen(run.source)) {
        if (window != nullptr) follower->touch(*window, run.source, run.first, run.count);
        file.cells->plan_read(file, begin, part, plan, window);
      } else {
        plan.add(*file.object, begin, part);
      }
      if (plan.size() > before) own_bytes += part.size();
    }
  }
  plan.run();
  Counters::Line& counters = counters_.own();
  if (template_pieces > 0) {
    counters.add(Counter::kTemplateReads, template_pieces);
    counters.add(Counter::kTemplateReadBytes, template_bytes);
  }
  if (plan.size() > template_pieces) {
    counters.add(Counter::kDataFileReads, plan.size() - template_pieces);
    counters.add(Counter::kDataFileReadBytes, own_bytes);
  }
}

void Volume::with_cells(std::span<const CellRun> runs,
                        const std::function<void(std::span<const CellPlace>)>& body) {
  const uint64_t disk_blocks = blocks_of(size_bytes());
  open_.with_map([&](VolumeMap& map) {
    std::vector<CellPlace> places;
    for (size_t i = 0; i < runs.size(); ++i) {
      const uint64_t end = std::min(runs[i].first + runs[i].count, disk_blocks);
      if (runs[i].first >= end) continue;
      RunList found;
      map.find(0, {runs[i].first, end - runs[i].first}, found);
      for (size_t j = 0; j < found.size(); ++j) {
        const Run& run = found[j];
        if (run.source != runs[i].source || reads_as_hole(run)) continue;
        if (run.source == kSourceUnmapped) {
          const uint64_t stop = std::min(run.first + run.count, open_.template_blocks);
          open_.template_image->find_cells(run.first, stop - run.first, i, places);
        } else if (open_.is_frozen(run.source)) {
          DataFile& file = open_.files.get_frozen(run.source);
          if (file.cells && run.first + run.count <= UINT32_MAX)
            places.push_back({file.cells, &file, file.key, static_cast<uint32_t>(run.first),
                              static_cast<uint32_t>(run.count), i, run.first});
        }
      }
    }
    body(places);
  });
}

void Volume::extents(uint32_t version, uint64_t offset, uint64_t length,
                     const std::function<bool(const Extent&)>& add) {
  counters_.own().add(Counter::kExtents);
  // Neighbours of one kind are joined before they are told.
  Extent joined{offset, 0, false};
  const auto tell = [&](uint64_t until, bool is_hole) {
    if (joined.length > 0 && joined.is_hole != is_hole) {
      if (!add(joined)) return false;
      joined = {joined.offset + joined.length, 0, is_hole};
    }
    joined.is_hole = is_hole;
    joined.length = until - joined.offset;
    return true;
  };
  const uint64_t end = offset + length;
  uint64_t block = first_block(offset);
  const uint64_t block_end = length == 0 ? block : block + block_count(offset, length);
  while (block < block_end) {
    const uint64_t stop = std::min(block_end, (block / kRegionBlocks + 1) * kRegionBlocks);
    RunList runs;
    open_.with_map([&](VolumeMap& map) {
      runs.clear();
      map.find(version, {block, stop - block}, runs);
    });
    for (size_t i = 0; i < runs.size(); ++i) {
      const Run& run = runs[i];
      uint64_t at = run.first;
      while (at < run.first + run.count) {
        uint64_t count = run.first + run.count - at;
        bool is_hole = reads_as_hole(run);
        if (!is_hole && run.source == kSourceUnmapped) {
          const TemplateImage::Run part = open_.template_image->run_at(at, count);
          count = part.count;
          is_hole = part.is_hole;
        }
        at += count;
        if (!tell(std::min(at * kBlockBytes, end), is_hole)) return;
      }
    }
    block = stop;
  }
  if (joined.length > 0) add(joined);
}

void Volume::changes(uint32_t from, uint32_t to, uint64_t offset, uint64_t length,
                     const std::function<void(const ChangedRange&)>& add) {
  if (length == 0) return;
  std::vector<ChangedRange> ranges;
  open_.with_map([&](VolumeMap& map) {
    ranges.clear();
    map.find_difference(from, to, {first_block(offset), block_count(offset, length)},
                        [&](const Run& before, const Run& after) {
                          const bool is_zero = reads_as_hole(after);
                          if (is_zero && reads_as_hole(before)) return;
                          const uint64_t begin = std::max(after.first * kBlockBytes, offset);
                          const uint64_t end =
                              std::min((after.first + after.count) * kBlockBytes, offset + length);
                          if (!ranges.empty() && ranges.back().is_zero == is_zero &&
                              ranges.back().offset + ranges.back().length == begin) {
                            ranges.back().length += end - begin;
                          } else {
                            ranges.push_back({begin, end - begin, is_zero});
                          }
                        });
  });
  for (const ChangedRange& range : ranges) add(range);
}

void Volume::cache(uint32_t version, uint64_t offset, uint64_t length) {
  ByteVector scratch(std::min(length, kCacheStepBytes));
  for (uint64_t done = 0; done < length; done += scratch.size())
    read_range(version, offset + done,
               MutableBytes(scratch).first(std::min<uint64_t>(scratch.size(), length - done)));
}

// --- writing

void Volume::flush() {
  counted<RequestKind::kFlush>(0, [&] {
    const uint64_t writes_before = writes();
    open_.map().commit();
    writes_at_flush_.store(writes_before);
    if (open_.map().wants(VolumeMap::Upkeep::kCheckpoint)) open_.environment.wake();
  });
}

// What a change does first and last; `operation` is the change.
template <typename Operation>
void Volume::change(bool durable, Operation operation) {
  open_.map().check_usable();
  operation();
  if (durable) open_.map().commit();
}

bool Volume::wait_for_changes(std::chrono::steady_clock::time_point deadline) {
  // What turns from an overwrite into something longer counts itself in there before it leaves
  // here.
  return open_.quiesce.wait_for_passes_until(deadline) &&
         changes_.wait_for_requests_until(deadline);
}

const Volume::Right Volume::kAlways;

void Volume::Right::await() const {
  while (!has()) {
    check_read();
    wait();
  }
}

// Counts a change in, once it may be made.
template <typename Pass, typename Gate>
void Volume::enter(std::optional<Pass>& pass, Gate& gate, const Right& right) {
  while (true) {
    pass.emplace(gate);
    if (right.has()) [[likely]]
      return;
    pass.reset();
    right.await();
    // Meanwhile it may have failed to be handed over.
    open_.map().check_usable();
  }
}

void Volume::Right::fail_lost() {
  fail(ESHUTDOWN, "connection",
       "has lost its volume to another one; the server's log says when, and to whom");
}

void Volume::write(uint64_t offset, Bytes from, bool durable, const Right& right) {
  counted<RequestKind::kWrite>(from.size(),
                               [&] { change(durable, [&] { write_range(offset, from, right); }); });
}

void Volume::write_range(uint64_t offset, Bytes from, const Right& right) {
  if (from.empty()) return;
  const bool is_split = offset % kBlockBytes != 0 || from.size() % kBlockBytes != 0;
  RunList runs;
  std::optional<Quiesce::Pass> pass;
  enter(pass, open_.quiesce, right);
  if (!is_split && try_overwrite(offset, from, runs)) return;
  const GracePeriod::Request change(changes_);
  pass.reset();
  first_write(offset, from);
}

// Overwrites blocks that are current's already, with a pass. False when some are not: `runs` says
// what they are.
bool Volume::try_overwrite(uint64_t offset, Bytes from, RunList& runs) {
  const uint64_t first = first_block(offset);
  const uint64_t count = block_count(offset, from.size());
  const RangeLocks::Shared hold(open_.range_locks, first, count);
  open_.map().find(0, {first, count}, runs);
  if (runs.size() != 1 || runs[0].source != open_.current.load(std::memory_order_relaxed))
    return false;
  if (offset % open_.write_alignment != 0 || from.size() % open_.write_alignment != 0) return false;
  open_.current_file.load(std::memory_order_relaxed)->write(offset, from);
  return true;
}

// The same, where some block is split; when it is not done, the rest of split blocks has been read.
// That is of the lookup that their source comes from: it is compared by that later, and of two
// lookups the second one might see what is no more by then.
bool Volume::try_overwrite_split(uint64_t offset, Bytes from, Edge& head, Edge& tail) {
  const GracePeriod::Request request(open_.cell_users);
  const uint32_t current = open_.current.load();
  RunList runs;
  {
    const Quiesce::Pass pass(open_.quiesce);
    if (try_overwrite(offset, from, runs)) return true;
  }
  if (head.is_split) read_edge(head, runs[0].source, current);
  if (tail.is_split) read_edge(tail, runs[runs.size() - 1].source, current);
  return false;
}

// In the request that has found the block's source, after it has seen that this version is current.
void Volume::read_edge(Edge& edge, uint32_t source, uint32_t current) {
  // Versions that have begun since count as current too.
  const bool may_change = source >= current && source != kSourceUnmapped;
  edge.source.reset();
  if (may_change) return;
  RunList block;
  block.add({{edge.block, 1}, source});
  read_runs(block, edge.block * kBlockBytes, edge.data);
  edge.source = source;
}

void Volume::first_write(uint64_t offset, Bytes from) {
  const uint64_t end = offset + from.size();
  Edge head;
  Edge tail;
  head.block = first_block(offset);
  tail.block = first_block(end - 1);
  head.is_split = offset % kBlockBytes != 0 || (head.block == tail.block && end % kBlockBytes != 0);
  tail.is_split = tail.block != head.block && end % kBlockBytes != 0;

  // Reads of slow sources come before the gate, so that they do not hold up a new version.
  const bool is_split = head.is_split || tail.is_split;
  if (is_split && try_overwrite_split(offset, from, head, tail)) return;
  if (open_.map().must_commit()) open_.map().commit();
  space_->help();
  const uint64_t first = head.block;
  const uint64_t count = tail.block - first + 1;
  while (true) {
    LogReservation reserved(open_.map(), LogReservation::records_for(first, count));
    if (try_first_write(offset, from, head, tail, reserved)) return;
    if (try_overwrite_split(offset, from, head, tail)) return;
  }
}

// False when a split block has got another source since its rest was read.
bool Volume::try_first_write(uint64_t offset, Bytes from, Edge& head, Edge& tail,
                             LogReservation& reserved) {
  const uint64_t first = head.block;
  const uint64_t count = tail.block - first + 1;
  const uint64_t end = offset + from.size();
  const Quiesce::Pass pass(open_.quiesce);
  const RangeLocks::Exclusive hold(open_.range_locks, first, count);
  const uint32_t current = open_.current.load(std::memory_order_relaxed);
  DataFile& file = *open_.current_file.load(std::memory_order_relaxed);
  // Where the blocks come from matters when some of their bytes stay.
  RunList runs;
  const auto find_runs = [&] {
    if (runs.size() == 0) open_.map().find(0, {first, count}, runs);
  };

  // Each split block becomes a whole one with the rest that was read; or, when it is current's
  // already, only the part that the request covers is written.
  std::array<WritePiece, 3> pieces;
  size_t piece_count = 0;
  uint64_t middle_begin = offset;
  uint64_t middle_end = end;
  const auto merge = [&](Edge& edge) {
    if (!edge.is_split) return true;
    find_runs();
    const uint32_t source = runs[&edge == &head ? 0 : runs.size() - 1].source;
    const uint64_t begin = edge.block * kBlockBytes;
    if (source == current) {
      if (open_.write_alignment == 1) return true;
      file.object->read(begin, edge.data);
    } else if (source != edge.source) {
      return false;
    }
    const uint64_t from_byte = std::max(begin, offset);
    const uint64_t to_byte = std::min(begin + kBlockBytes, end);
    std::memcpy(edge.data.data() + (from_byte - begin), from.data() + (from_byte - offset),
                to_byte - from_byte);
    pieces[piece_count++] = {file.object.get(), begin, edge.data};
    if (from_byte == offset) middle_begin = to_byte;
    if (to_byte == end) middle_end = std::max(middle_begin, from_byte);
    return true;
  };
  if (!merge(head) || !merge(tail)) return false;
  if (open_.is_unswept.load(std::memory_order_relaxed)) {
    // Were the write never to reach the disk, what is left of a crash must not pass for it.
    find_runs();
    for (size_t i = 0; i < runs.size(); ++i)
      if (runs[i].source != current)
        file.object->punch(runs[i].first * kBlockBytes, runs[i].count * kBlockBytes);
  }
  if (middle_begin < middle_end)
    pieces[piece_count++] = {file.object.get(), middle_begin,
                             from.subspan(middle_begin - offset, middle_end - middle_begin)};
  try {
    if (piece_count == 1) {
      file.object->write(pieces[0].offset, pieces[0].from);
    } else {
      open_.backend.write_batch(std::span(pieces).first(piece_count)).throw_first();
    }
    file.note_write();
    open_.map().assign({{first, count}, current}, reserved);
  } catch (...) {
    // What was written of blocks that have not become current's belongs to nobody.
    runs.clear();
    find_runs();
    for (size_t i = 0; i < runs.size(); ++i)
      if (runs[i].source != current)
        file.object->punch(runs[i].first * kBlockBytes, runs[i].count * kBlockBytes);
    file.note_write();
    throw;
  }
  counters_.own().add(Counter::kFirstWrites, count);
  return true;
}

// --- trimming and zeroing

void Volume::trim(uint64_t offset, uint64_t length, bool durable, const Right& right) {
  counted<RequestKind::kTrim>(length,
                              [&] { change(durable, [&] { discard(offset, length, right); }); });
}

void Volume::zero(uint64_t offset, uint64_t length, bool durable, const Right& right) {
  counted<RequestKind::kZero>(length,
                              [&] { change(durable, [&] { discard(offset, length, right); }); });
}

void Volume::discard(uint64_t offset, uint64_t length, const Right& right) {
  std::optional<GracePeriod::Request> change;
  enter(change, changes_, right);
  const uint64_t end = offset + length;
  // The last block of a disk whose size is not a multiple of a block counts as whole.
  const uint64_t whole_end =
      end == size_bytes() ? blocks_of(end) : std::max(blocks_of(offset), end / kBlockBytes);
  const uint64_t whole_begin = std::min(blocks_of(offset), whole_end);
  if (whole_begin == whole_end) {
    zero_part(offset, length);
    return;
  }
  zero_part(offset, whole_begin * kBlockBytes - offset);
  if (end > whole_end * kBlockBytes)
    zero_part(whole_end * kBlockBytes, end - whole_end * kBlockBytes);

  // Behind the template's end, blocks that no interval covers read as zeroes anyway.
  for (uint64_t first = whole_begin; first < whole_end;) {
    uint64_t stop = std::min(whole_end, (first / kRegionBlocks + 1) * kRegionBlocks);
    if (first < open_.template_blocks) stop = std::min(stop, open_.template_blocks);
    discard_blocks(first, stop - first);
    first = stop;
  }
}

// Zeroes bytes within a block or two, unless they are zero anyway.
void Volume::zero_part(uint64_t offset, uint64_t length) {
  static constexpr std::array<std::byte, kBlockBytes> kZeroes{};
  while (length > 0) {
    const uint64_t part = std::min(length, kBlockBytes - offset % kBlockBytes);
    RunList runs;
    open_.map().find(0, {first_block(offset), 1}, runs);
    if (!reads_as_hole(runs[0])) write_range(offset, Bytes(kZeroes).first(part));
    offset += part;
    length -= part;
  }
}

// Makes blocks of one region read as zeroes and gives back the space of current's own among them.
void Volume::discard_blocks(uint64_t first, uint64_t count) {
  RunList before;
  open_.map().find(0, {first, count}, before);
  if (before.size() == 1 && reads_as_hole(before[0])) return;
  if (open_.map().must_commit()) open_.map().commit();

  LogReservation reserved(
      open_.map(), 1,
      open_.map().ask(&MapState::frees_cells, before) ? Reserve::kTrims : Reserve::kNone);
  const Quiesce::Pass pass(open_.quiesce);
  const RangeLocks::Exclusive hold(open_.range_locks, first, count);
  const uint32_t current = open_.current.load(std::memory_order_relaxed);
  DataFile& file = *open_.current_file.load(std::memory_order_relaxed);
  RunList runs;
  open_.map().find(0, {first, count}, runs);
  // The map comes first: while it leads to a cell that is not a hole, whoever opens the volume
  // after this process takes holes for lost data.
  open_.map().assign(
      {{first, count}, first < open_.template_blocks ? kSourceZero : kSourceUnmapped}, reserved);
  try {
    for (size_t i = 0; i < runs.size(); ++i) {
      if (runs[i].source != current) continue;
      file.object->punch(runs[i].first * kBlockBytes, runs[i].count * kBlockBytes);
      file.note_write();
    }
  } catch (...) {
    space_->sweep_again();
    throw;
  }
}

}  // namespace tplstore
