// What reaches a terminal: text of others without control characters, and progress that never
// wraps.
#include "base/text.h"

#include <doctest/doctest.h>

#include <random>

#include "base/error.h"
#include "base/units.h"
#include "control/json_output.h"
#include "progress.h"
#include "table.h"

namespace tplstore::text_test {
using nlohmann::json;
using tool::progress_line;
using tool::ProgressState;

namespace {

bool has_control(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool is_c1 =
        byte == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (byte < 0x20 || byte == 0x7f || is_c1) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("control characters are not printable, and neither is what is no UTF-8") {
  CHECK(printable("") == "");
  CHECK(printable("plain ~ text") == "plain ~ text");
  CHECK(printable("Größe, 大, 🙂") == "Größe, 大, 🙂");
  CHECK(printable("a\nb\tc\r\x1b[2J") == "a?b?c??[2J");
  CHECK(printable(std::string_view("\0\x7f", 2)) == "??");
  CHECK(printable("\xc2\x80\xc2\x9b"
                  "2J\xc2\x9f\xc2\xa0") == "??2J?\xc2\xa0");
  // Bytes that a terminal which knows no UTF-8 takes for C1; cut, overlong and too large ones;
  // halves of surrogates.
  CHECK(printable("\x9b"
                  "2J") == "?2J");
  CHECK(printable("\xe5\xa4") == "??");
  CHECK(printable("\xe5\xa4|") == "??|");
  CHECK(printable("\xc0\x9b\xe0\x82\x9b") == "?????");
  CHECK(printable("\xed\xa0\x80\xf4\x90\x80\x80\xff") == "????????");
  CHECK(printable_lines("a\nb\x1b\n") == "a\nb?\n");
}

TEST_CASE("whatever bytes they are, what is printed has no control characters") {
  const auto seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20'000; ++round) {
    std::string text(random() % 12, ' ');
    for (char& c : text) c = static_cast<char>(random() % 4 == 0 ? 0xc2 : random());
    CHECK_FALSE(has_control(printable(text)));
    CHECK(printable(printable(text)) == printable(text));
    CHECK_FALSE(has_control(json_text({{"note", text}, {text, 1}})));
    CHECK_FALSE(has_control(tool::plain(text)));
    CHECK_FALSE(has_control(Error(EIO, text, text).what()));
    CHECK_FALSE(has_control(Error(EIO, text, text).object()));
  }
}

TEST_CASE("JSON says the same with its control characters escaped") {
  const json note = {{"note", "a\x7f\xc2\x80\xc2\x9b\xc2\xa0ü\n"}};
  CHECK(json_text(note) == R"({"note":"a\u007f\u0080\u009b)"
                           "\xc2\xa0"
                           R"(ü\n"})");
  CHECK(json::parse(json_text(note)) == note);
}

TEST_CASE("characters are counted and cut whole") {
  CHECK(count_characters("") == 0);
  CHECK(count_characters("Größe") == 5);
  CHECK(first_characters("Größe", 3) == "Grö");
  CHECK(first_characters("Größe", 9) == "Größe");
  CHECK(first_characters("Größe", 0) == "");
}

TEST_CASE("columns of a terminal are counted, and texts are cut to them") {
  CHECK(count_columns("") == 0);
  CHECK(count_columns("Größe") == 5);
  CHECK(count_columns("磁盘a") == 5);
  CHECK(count_columns("e\u0301") == 1);  // a letter and an accent
  CHECK(first_columns("磁盘a", 5) == "磁盘a");
  CHECK(first_columns("磁盘a", 4) == "磁盘");
  CHECK(first_columns("磁盘a", 3) == "磁");
  CHECK(first_columns("磁盘a", 1) == "");
  CHECK(first_columns("Größe", 3) == "Grö");
}

TEST_CASE("times are read as they are written") {
  for (const int64_t ns : {int64_t{0}, int64_t{1'700'000'000'000'000'000}, INT64_MAX}) {
    const std::string text = format_time(ns);
    CHECK(format_time(parse_time(text).value()) == text);
  }
  for (const char* text : {"", "now", "2024-01-01T00:00:00", "2024-01-01T00:00:00Z ",
                           "2024-02-31T00:00:00Z", "9999-12-31T23:59:59Z", "24-01-01T00:00:00Z"})
    CHECK_FALSE(parse_time(text).has_value());
}

TEST_CASE("a line of progress fits, however narrow the terminal and long the label") {
  const uint64_t sizes[] = {0, 1, 1000, uint64_t{1023} << 20, uint64_t{5} << 40};
  for (const size_t label_size : {size_t{0}, size_t{5}, size_t{20}, size_t{150}})
    for (const uint64_t total : sizes)
      for (const double rate : {0.0, 1.0, 1e6, 2e10})
        for (size_t columns = 0; columns <= 200; ++columns) {
          ProgressState state{std::string(label_size, 'x'), total / 2, total, rate};
          CHECK(count_columns(progress_line(state, columns)) <= columns);
          if (columns % 16 != 7) continue;
          for (size_t i = 0; i < label_size; ++i) state.label += "磁";
          CHECK(count_columns(progress_line(state, columns)) <= columns);
        }
}

TEST_CASE("a line of progress leaves out what matters least") {
  const ProgressState state{"importing debian12", uint64_t{1200} << 20, uint64_t{3} << 30, 1e8};
  CHECK(progress_line(state, 100) ==
        "importing debian12 [#######.............]  39%  1.2 GiB of 3.0 GiB  95.4 MiB/s  20s left");
  CHECK(progress_line(state, 79) ==
        "importing debian12 [###.......]  39%  1.2 GiB of 3.0 GiB  95.4 MiB/s  20s left");
  CHECK(progress_line(state, 60) == "importing debian12  39%  1.2 GiB of 3.0 GiB  20s left");
  CHECK(progress_line(state, 24) == "importing debian12  39%");
  CHECK(progress_line(state, 12) == "impo...  39%");
  const ProgressState path{"verifying /a/very/long/path/to/some/increment.inc", 1, 2, 0};
  CHECK(progress_line(path, 60) == "verifying /a/very/long/path... [#####.....]  50%  1 B of 2 B");
}

}  // namespace tplstore::text_test
