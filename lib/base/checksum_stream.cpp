// XXH3's own state does the work.
#include "base/checksum_stream.h"

#include <xxhash.h>

#include <new>

namespace tplstore {

ChecksumStream::ChecksumStream(uint64_t seed) : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  XXH3_64bits_reset_withSeed(state_.get(), seed);
}
void ChecksumStream::add(Bytes bytes) {
  XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
}
uint64_t ChecksumStream::value() const { return XXH3_64bits_digest(state_.get()); }
void ChecksumStream::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

}  // namespace tplstore
