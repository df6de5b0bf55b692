// Which of some cache lines a thread counts in, so that threads do not meet in one.
// Thread safety: all.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace tplstore {

// What is counted in as many lines is summed up by who asks for it.
inline constexpr size_t kThreadLines = 16;

// Threads have the lines in turn.
inline size_t thread_line() {
  constinit static std::atomic<uint32_t> threads{0};
  constinit thread_local uint32_t line = kThreadLines;
  if (line == kThreadLines) [[unlikely]]
    line = threads.fetch_add(1, std::memory_order_relaxed) % kThreadLines;
  return line;
}

}  // namespace tplstore
