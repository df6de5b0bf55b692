// Runs the tests of the source that the program is named after: where everything is built in large
// pieces one program has the tests of many sources, and a name for each.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <filesystem>
#include <string>

int main(int argc, char** argv) {
  doctest::Context context;
  const std::string name = argc > 0 ? std::filesystem::path(argv[0]).filename().string() : "";
  if (name.ends_with("_test")) context.addFilter("source-file", ("*/" + name + ".cpp").c_str());
  context.applyCommandLine(argc, argv);
  return context.run();
}
