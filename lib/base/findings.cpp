// Kept in the order in which they were found.
#include "base/findings.h"

#include <utility>

namespace tplstore {

std::string Finding::text() const {
  if (object.empty() || object == subject) return fmt::format("{}: {}", subject, problem);
  return fmt::format("{}: {}: {}", subject, object, problem);
}

void Findings::begin(const std::string& subject, const Uuid& volume) {
  subject_ = subject;
  volume_ = volume;
}

Finding& Findings::add(Finding finding) {
  finding.subject = subject_;
  finding.volume = volume_;
  faults_ += finding.is_fault ? 1 : 0;
  if (all_.size() >= kKeptMax) return beyond_ = std::move(finding);
  return all_.emplace_back(std::move(finding));
}

Finding& Findings::fault(const std::string& object, const std::string& problem, Repair repair) {
  Finding finding;
  finding.object = object;
  finding.problem = problem;
  finding.repair = repair;
  return add(std::move(finding));
}

Finding& Findings::fault(const Error& error, Repair repair) {
  const std::string text = error.what(), prefix = error.object() + ": ";
  return fault(error.object(), text.starts_with(prefix) ? text.substr(prefix.size()) : text,
               repair);
}

void Findings::note(const std::string& object, const std::string& problem) {
  Finding finding;
  finding.object = object;
  finding.problem = problem;
  finding.is_fault = false;
  add(std::move(finding));
}

void Findings::add_lost(Finding& fault, const LostRange& range) {
  if (!fault.lost.empty()) {
    LostRange& last = fault.lost.back();
    if (last.disk == range.disk && last.offset + last.length == range.offset) {
      last.length += range.length;
      return;
    }
  }
  if (fault.lost.size() < kLostMax)
    fault.lost.push_back(range);
  else
    ++fault.lost_more;
}

void Findings::drop_from(size_t count) {
  while (all_.size() > count) {
    faults_ -= all_.back().is_fault ? 1 : 0;
    all_.pop_back();
  }
}

}  // namespace tplstore
