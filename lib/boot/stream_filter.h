// Tells the reads of a connection that go through a disk from those of a boot: a stream is more
// than 8 MiB read in ascending order, without a gap of more than 1 MiB.
//
// Requests of one connection overtake each other, so a read may also fill a gap that a stream has
// left, or end right where another one began. Programs that copy disks have some that are larger
// than a gap, so of these several may be missing yet. A guest reads several files at once: the
// filter follows a few places, and forgets the one that was read least recently.
//
// Pure; belongs to one thread at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace tplstore {

class StreamFilter {
 public:
  static constexpr uint64_t kStreamBytes = uint64_t{8} << 20;
  static constexpr uint64_t kGapBytesMax = uint64_t{1} << 20;
  static constexpr uint64_t kOvertakenMax = 16;  // requests

  // Notes a read; whether it is part of a stream.
  bool is_streaming(uint64_t offset, uint64_t length) {
    ++time_;
    Place* place = places_.data();
    for (Place& other : places_) {
      if (other.is_continued_by(offset, length)) {
        place = &other;
        break;
      }
      if (other.used_at < place->used_at) place = &other;
    }
    if (!place->is_continued_by(offset, length)) *place = {.begin = offset, .end = offset};
    place->used_at = time_;
    const uint64_t end = offset + length;
    if (end > place->end) {
      if (offset > place->end) place->gap_bytes += offset - place->end;
      place->end = end;
    } else {
      place->gap_bytes -= std::min(place->gap_bytes, length);
    }
    for (Place& other : places_)
      if (&other != place && other.end > 0 && other.begin == place->end) {
        place->end = other.end;
        place->gap_bytes += other.gap_bytes;
        other = {};
      }
    return place->end - place->begin - place->gap_bytes > kStreamBytes;
  }

 private:
  struct Place {
    uint64_t begin = 0;
    uint64_t end = 0;        // of what was read; 0 where nothing was
    uint64_t gap_bytes = 0;  // of what lies between and was not read
    uint64_t used_at = 0;

    bool is_continued_by(uint64_t offset, uint64_t length) const {
      const uint64_t late = length > kGapBytesMax ? kOvertakenMax * length : 0;
      const uint64_t behind = std::max(kStreamBytes, late), gap = std::max(kGapBytesMax, late);
      return end > 0 && offset >= std::max(begin, end - std::min(end, behind)) &&
             offset <= end + gap;
    }
  };

  std::array<Place, 8> places_;
  uint64_t time_ = 0;
};

}  // namespace tplstore
