// Journals of updates (map/update_journal.h) as files of this host:
// <run directory>/<uuid of the store>/<uuid of the volume>.<id>, of 1 to 8 MiB, mapped. On a tmpfs,
// as /run is, they last as long as the host is up, and cost no I/O; on another file system they are
// known by their boot.
//
// They are for their owner only, allocated before they are used, and locked (flock) by who has them
// mapped: so a copy of a store does not take the original's.
//
// Thread safety: all methods. Errors: see map/update_journal.h.
#pragma once

#include <functional>
#include <string>

#include "base/log.h"
#include "map/update_journal.h"

namespace tplstore {

class JournalFiles final : public JournalPlace {
 public:
  // `run_directory` makes it if need be, and is empty in a process that serves no disks.
  JournalFiles(const Uuid& store, std::function<std::string()> run_directory, Log log)
      : store_(store), run_directory_(std::move(run_directory)), log_(std::move(log)) {}

  Uuid boot() const override;
  bool is_servers() const override { return run_directory_ != nullptr; }
  std::unique_ptr<JournalMemory> create(const Uuid& volume, const Uuid& id,
                                        std::string& path) override;
  std::unique_ptr<JournalMemory> open(const std::string& path) override;
  void remove(const std::string& path) noexcept override;
  void remove_others(const Uuid& volume, const std::string& kept) noexcept override;

 private:
  bool is_ours(const std::string& path) const;
  std::string directory() const { return run_directory_() + "/" + store_.text(); }

  const Uuid store_;
  const std::function<std::string()> run_directory_;
  const Log log_;
};

}  // namespace tplstore
