// What explorers of the lock's rules find.
#pragma once

#include <string>
#include <vector>

namespace tplstore {

struct Finding {
  std::string broken;  // empty: all holds
  std::vector<std::string> run;
  size_t worlds = 0;
};

inline std::string text_of(const Finding& finding) {
  std::string text = finding.broken;
  for (const std::string& line : finding.run) text += "\n    " + line;
  return text;
}

}  // namespace tplstore
