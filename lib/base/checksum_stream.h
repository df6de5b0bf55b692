// checksum() of bytes that come in pieces.
//
// Thread safety: none. Throws std::bad_alloc when it is made.
#pragma once

#include <memory>

#include "base/bytes.h"

struct XXH3_state_s;

namespace tplstore {

class ChecksumStream {
 public:
  explicit ChecksumStream(uint64_t seed);
  void add(Bytes bytes);
  uint64_t value() const;  // of all so far

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace tplstore
