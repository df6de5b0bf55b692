// How urgent a thread's reads and writes are. Thread safety: all.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

namespace tplstore {

// Of the calling thread: its I/O comes when nobody else's does. Where that cannot be had it is as
// urgent as others.
inline void make_thread_io_idle() {
  constexpr int kOfThread = 1, kIdleClass = 3, kClassShift = 13;
  (void)syscall(SYS_ioprio_set, kOfThread, 0, kIdleClass << kClassShift);
}

}  // namespace tplstore
