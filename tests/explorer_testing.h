// What explorers of the lock's rules find.
#pragma once

#include <string>
#include <vector>

namespace tplstore {

struct Violation {
  std::string broken;  // empty: all holds
  std::vector<std::string> run;
  size_t worlds = 0;
};

inline std::string text_of(const Violation& finding) {
  std::string text = finding.broken;
  for (const std::string& line : finding.run) text += "\n    " + line;
  return text;
}

}  // namespace tplstore
