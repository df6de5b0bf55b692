#include "transfer/image_source.h"

#include <doctest/doctest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <thread>

#include "own_nbd_server.h"
#include "template_testing.h"
#include "temporary_directory.h"
#include "transfer/image_check.h"
#include "transfer/partition_check.h"
#include "transfer/qemu_nbd.h"

namespace tplstore::image_source_test {
using namespace tplstore::testing;

namespace {

// Whether the tests that need qemu can run; says why not.
bool can_run() {
  if (have_qemu()) return true;
  MESSAGE("skipped: qemu-img and qemu-nbd are not installed");
  return false;
}

struct Folder : TemporaryDirectory {
  std::string operator/(const std::string& name) const { return path() + "/" + name; }
};

std::string quoted(const std::string& text) { return "'" + text + "'"; }

bool convert(const std::string& raw, const std::string& options, const std::string& image) {
  return run("qemu-img convert -f raw -O " + options + " " + quoted(raw) + " " + quoted(image));
}

ByteVector read_all(ImageSource& source) {
  ByteVector disk(source.size_bytes());
  uint64_t next = 0;
  source.read_data([&](uint64_t offset, Bytes data) {
    REQUIRE(offset >= next);
    REQUIRE(offset % kBlockBytes == 0);
    REQUIRE(offset + data.size() <= disk.size());
    REQUIRE((data.size() % kBlockBytes == 0 || offset + data.size() == disk.size()));
    std::copy(data.begin(), data.end(), disk.begin() + static_cast<ptrdiff_t>(offset));
    next = offset + data.size();
  });
  return disk;
}

ByteVector import_of(const std::string& source, const ImageSourceOptions& options = {}) {
  return read_all(*ImageSource::open(source, options));
}

// What opening says.
Thrown refusal_of(const std::string& source, const ImageSourceOptions& options = {}) {
  return thrown_by([&] { ImageSource::open(source, options); });
}

bool mentions(const Thrown& thrown, std::string_view text) {
  return thrown.text.find(text) != std::string::npos;
}

// 3 MiB of disk with data at the begin, holes, and data at the end; the end within a block.
ByteVector example_disk() {
  std::vector<uint64_t> numbers(769);
  for (uint64_t i = 0; i < 70; ++i) numbers[i] = i + 1;
  for (uint64_t i = 200; i < 216; ++i) numbers[i] = i;
  for (uint64_t i = 600; i < 769; ++i) numbers[i] = i % 5 == 0 ? 0 : i;
  ByteVector disk = disk_of(numbers);
  disk.resize(768 * kBlockBytes + 512);
  return disk;
}

// The children of this process that run qemu-nbd.
std::vector<pid_t> find_servers() {
  std::vector<pid_t> servers;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string pid = entry.path().filename().string();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    std::string text;
    try {
      text = to_text(read_file("/proc/" + pid + "/stat"));
    } catch (const std::exception&) {
      continue;  // it has just ended
    }
    const size_t name_end = text.rfind(')');
    if (name_end == std::string::npos || text.find("(qemu-nbd)") == std::string::npos) continue;
    pid_t parent = 0;
    char state = 0;
    std::sscanf(text.c_str() + name_end + 1, " %c %d", &state, &parent);
    if (parent == getpid()) servers.push_back(std::stoi(pid));
  }
  return servers;
}

// Puts a shell script in front of one of qemu's programs: what it does happens when the program is
// started. `$real` is the program.
class Wrapped {
 public:
  Wrapped(const Folder& folder, const std::string& program, const std::string& script)
      : old_path_(getenv("PATH")) {
    const std::string bin = folder / "bin";
    std::filesystem::create_directories(bin);
    write_file(bin + "/" + program,
               as_bytes("#!/bin/sh\nPATH='" + old_path_ + "'\nreal=$(command -v " + program +
                        ")\n" + script + "\n"));
    REQUIRE(chmod((bin + "/" + program).c_str(), 0700) == 0);
    setenv("PATH", (bin + ":" + old_path_).c_str(), 1);
  }
  ~Wrapped() { setenv("PATH", old_path_.c_str(), 1); }
  Wrapped(const Wrapped&) = delete;
  Wrapped& operator=(const Wrapped&) = delete;

 private:
  const std::string old_path_;
};

bool contains(const ByteVector& bytes, const ByteVector& part) {
  return std::search(bytes.begin(), bytes.end(), part.begin(), part.end()) != bytes.end();
}

}  // namespace

TEST_CASE("images of every format read as the disk they were made from") {
  if (!can_run()) return;
  const Folder folder;
  const ByteVector disk = example_disk();
  write_file(folder / "disk.raw", disk);
  CHECK(import_of(folder / "disk.raw") == disk);
  for (const std::string format :
       {"qcow2", "qcow2 -c", "qcow2 -c -o compression_type=zstd", "qcow2 -o cluster_size=512",
        "qcow2 -o extended_l2=on", "vmdk", "vmdk -o subformat=streamOptimized", "vhdx",
        "vhdx -o subformat=fixed", "vdi", "vdi -o static=on", "vpc -o force_size=on",
        "vpc -o subformat=fixed,force_size=on", "qed"}) {
    CAPTURE(format);
    REQUIRE(convert(folder / "disk.raw", format, folder / "image"));
    const auto source = ImageSource::open(folder / "image", {});
    CHECK(source->size_bytes() == disk.size());
    CHECK(source->description() ==
          (folder / "image") + " (" + format.substr(0, format.find(' ')) + ")");
    CHECK(read_all(*source) == disk);
  }
}

TEST_CASE("small requests and few of them give the same disk") {
  if (!can_run()) return;
  const Folder folder;
  const ByteVector disk = example_disk();
  write_file(folder / "disk.raw", disk);
  CHECK(import_of(folder / "disk.raw", {.requests_in_flight = 1, .request_bytes = 65536}) == disk);
  CHECK(import_of(folder / "disk.raw", {.requests_in_flight = 3, .request_bytes = 1}) == disk);
}

TEST_CASE("holes are not read") {
  if (!can_run()) return;
  const Folder folder;
  ByteVector disk(uint64_t{64} << 20);
  const ByteVector block = block_of(1);
  std::copy(block.begin(), block.end(), disk.begin() + (32 << 20));
  write_file(folder / "disk.raw", disk);
  REQUIRE(convert(folder / "disk.raw", "qcow2", folder / "image"));
  uint64_t bytes = 0;
  ImageSource::open(folder / "image", {})->read_data([&](uint64_t, Bytes data) {
    bytes += data.size();
  });
  CHECK(bytes > 0);
  CHECK(bytes <= 65536);
}

TEST_CASE("odd file names are just names") {
  if (!can_run()) return;
  const Folder folder;
  const ByteVector disk = disk_of({1, 2, 0, 3});
  const auto old_directory = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  write_file("disk.raw", disk);
  for (const std::string name : {"a:b,c.qcow2", "-f", "json:{}", "nbd:x:1", "a b\"c$(d)",
                                 "%s,file=x", "fat:rw:x", "--help", "file:y"}) {
    CAPTURE(name);
    REQUIRE(run("qemu-img convert -f raw -O qcow2 disk.raw i && mv -- i './" + name + "'"));
    CHECK(import_of(name) == disk);
    REQUIRE(run("qemu-img convert -f raw -O vmdk disk.raw i && mv -- i './" + name + "'"));
    CHECK(import_of(name) == disk);
  }
  std::filesystem::current_path(old_directory);
}

TEST_CASE("what is no image is refused with a reason") {
  if (!can_run()) return;
  const Folder folder;
  CHECK(refusal_of(folder / "none").code == ENOENT);
  CHECK(mentions(refusal_of(folder.path()), "not a regular file"));
  REQUIRE(mkfifo((folder / "fifo").c_str(), 0600) == 0);
  CHECK(mentions(refusal_of(folder / "fifo"), "not a regular file"));
  write_file(folder / "empty", {});
  CHECK(mentions(refusal_of(folder / "empty"), "is empty"));
  write_file(folder / "x.qcow2", disk_of({1, 2}));
  CHECK(mentions(refusal_of(folder / "x.qcow2"), "is called .qcow2"));
  CHECK(import_of(folder / "x.qcow2", {.format = "raw"}) == disk_of({1, 2}));
  CHECK(mentions(refusal_of(folder / "x.qcow2", {.format = "qcow2"}), "cannot open it"));
  CHECK(mentions(refusal_of(folder / "x.qcow2", {.format = "nbd"}), "cannot be imported"));
  CHECK(mentions(refusal_of(folder / "x.qcow2", {.format = "--help"}), "cannot be imported"));
  REQUIRE(run("gzip -k " + (folder / "x.qcow2") + " && mv " + (folder / "x.qcow2.gz") + " " +
              (folder / "y.img")));
  CHECK(mentions(refusal_of(folder / "y.img"), "gzip"));
  write_file(folder / "odd.raw", ByteVector(4096 + 100, std::byte{1}));
  CHECK(mentions(refusal_of(folder / "odd.raw"), "is cut short"));
  CHECK(refusal_of(folder / "none\nevil").text.find("cannot open") != std::string::npos);
}

TEST_CASE("sizes that no disk has are refused") {
  CHECK(thrown_by([] { check_disk_size("s", 0); }).code == EINVAL);
  CHECK(thrown_by([] { check_disk_size("s", 513); }).code == EINVAL);
  CHECK(thrown_by([] { check_disk_size("s", (uint64_t{64} << 40) + 512); }).code == EFBIG);
  CHECK(thrown_by([] { check_disk_size("s", uint64_t{64} << 40); }).code == 0);
  if (!can_run()) return;
  const Folder folder;
  REQUIRE(run("qemu-img create -f qcow2 " + (folder / "zero") + " 0"));
  CHECK(mentions(refusal_of(folder / "zero"), "0 bytes"));
  REQUIRE(run("qemu-img create -f qcow2 " + (folder / "huge") + " 65T"));
  CHECK(refusal_of(folder / "huge").code == EFBIG);
}

TEST_CASE("images that lead to other files are refused unless that is allowed") {
  if (!can_run()) return;
  const Folder folder;
  const ByteVector disk = disk_of({1, 2, 0, 3});
  write_file(folder / "base.raw", disk);
  const auto in_folder = [&](const std::string& command) {
    REQUIRE(run("cd " + folder.path() + " && " + command));
  };
  in_folder("qemu-img create -f qcow2 -b base.raw -F raw child.qcow2");
  in_folder("qemu-img create -f qed -b base.raw -F raw child.qed");
  in_folder("qemu-img convert -f raw -O vmdk base.raw base.vmdk");
  in_folder("qemu-img create -f vmdk -b base.vmdk -F vmdk child.vmdk");
  in_folder("qemu-img convert -f raw -O qcow2 -o data_file=$PWD/data.raw base.raw data.qcow2");
  in_folder("qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat base.raw flat.vmdk");
  in_folder(
      "qemu-img convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse base.raw parts.vmdk");
  for (const std::string name :
       {"child.qcow2", "child.qed", "child.vmdk", "data.qcow2", "flat.vmdk", "parts.vmdk"}) {
    CAPTURE(name);
    const Thrown thrown = refusal_of(folder / name);
    CHECK(thrown.code == EINVAL);
    CHECK(mentions(thrown, "is not the whole image"));
    CHECK(import_of(folder / name, {.allow_backing = true}) == disk);
  }
}

TEST_CASE("what an image points to is not opened before it is refused") {
  if (!can_run()) return;
  const Folder folder;
  // Opening either fifo would hang.
  REQUIRE(mkfifo((folder / "fifo").c_str(), 0600) == 0);
  const std::string descriptor =
      "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"
      "RW 2048 FLAT \"" +
      (folder / "fifo") + "\" 0\n";
  write_file(folder / "evil.vmdk", as_bytes(descriptor));
  CHECK(mentions(refusal_of(folder / "evil.vmdk"), "is not the whole image"));
  REQUIRE(run("qemu-img create -f qcow2 -o data_file=" + (folder / "data") + " " +
              (folder / "evil.qcow2") + " 1M && rm " + (folder / "data") + " && mkfifo " +
              (folder / "data")));
  CHECK(mentions(refusal_of(folder / "evil.qcow2"), "external data file"));
}

TEST_CASE("a vmdk descriptor is refused whatever it leaves out and whatever format was said") {
  if (!can_run()) return;
  const Folder folder;
  ByteVector secret = disk_of({7});
  write_file(folder / "secret", secret);
  const std::string extent = "RW 8 FLAT \"" + (folder / "secret") + "\" 0\n";
  const std::string type = "createType=\"monolithicFlat\"\n";
  const std::string padding(4096, '\n');
  for (const std::string& text :
       {type + extent, "CID=1\nparentCID=ffffffff\n" + type + extent, "\n\nx\n" + type + extent,
        std::string("\0", 1) + type + extent,
        "version=1\nCID=1\nparentCID=ffffffff\n" + type + extent,
        "version=1\n" + type + extent + extent, type + extent + "RW 8 ZERO\n"}) {
    CAPTURE(text);
    write_file(folder / "evil", as_bytes(text + padding.substr(0, 4096 - text.size() % 512)));
    for (const std::string format : {"vmdk", ""}) {
      CAPTURE(format);
      ByteVector read;
      const Thrown thrown =
          thrown_by([&] { read = import_of(folder / "evil", {.format = format}); });
      CHECK(!contains(read, secret));
      if (format == "vmdk") {
        CHECK(thrown.code == EINVAL);
        CHECK(mentions(thrown, "is not the whole image"));
      }
    }
  }
  // As the first extent of a sparse one, which is found by its header.
  write_file(folder / "disk.raw", disk_of({1, 2, 0, 3}));
  REQUIRE(convert(folder / "disk.raw", "vmdk", folder / "sparse"));
  ByteVector sparse = read_file(folder / "sparse");
  std::fill_n(sparse.begin() + 12, 8, std::byte{0});  // a capacity of 0: the descriptor counts
  const std::string inside = type + extent;
  std::fill_n(sparse.begin() + 512, 1024, std::byte{0});
  std::memcpy(sparse.data() + 512, inside.data(), inside.size());
  write_file(folder / "sparse", sparse);
  CHECK(mentions(refusal_of(folder / "sparse"), "is not the whole image"));
}

TEST_CASE("an image that is exchanged after it was checked is not read") {
  if (!can_run()) return;
  const Folder folder;
  const ByteVector secret = disk_of({7, 8, 9, 10}), disk = disk_of({1, 2, 3, 4});
  write_file(folder / "secret", secret);
  write_file(folder / "disk.raw", disk);
  const auto in_folder = [&](const std::string& command) {
    REQUIRE(run("cd " + folder.path() + " && " + command));
  };
  in_folder("qemu-img convert -f raw -O qcow2 disk.raw good.qcow2");
  in_folder("qemu-img create -f qcow2 -b secret -F raw evil.qcow2");
  in_folder("qemu-img convert -f raw -O vmdk disk.raw good.vmdk");
  in_folder("cp good.qcow2 good.raw");
  const std::string descriptor =
      "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 32 FLAT \"" +
      (folder / "secret") + "\" 0\n" + std::string(4096, '\n');
  write_file(folder / "evil.vmdk", as_bytes(descriptor));
  in_folder("cp secret evil.raw");
  for (const std::string format : {"qcow2", "vmdk", "raw"}) {
    CAPTURE(format);
    in_folder("cp good." + format + " image");
    const ByteVector expected = format == "raw" ? read_file(folder / "good.raw") : disk;
    const Wrapped swap(folder, "qemu-nbd",
                       "cd " + folder.path() + " && cp evil." + format +
                           " other && mv other image && cd / && exec $real \"$@\"");
    CHECK(import_of(folder / "image", {.format = format}) == expected);
  }
}

TEST_CASE("an image that is rewritten in place after it was checked leads nowhere") {
  if (!can_run()) return;
  const Folder folder;
  const ByteVector secret = disk_of({7, 8, 9, 10});
  write_file(folder / "secret", secret);
  write_file(folder / "disk.raw", disk_of({1, 2, 3, 4}));
  const auto in_folder = [&](const std::string& command) {
    REQUIRE(run("cd " + folder.path() + " && " + command));
  };
  in_folder("qemu-img convert -f raw -O qcow2 disk.raw good.qcow2");
  in_folder("qemu-img convert -f raw -O vmdk disk.raw good.vmdk");
  in_folder("qemu-img create -f qcow2 -b secret -F raw backing");
  in_folder(
      "cp secret data && qemu-img convert -f raw -O qcow2 -o data_file=$PWD/data disk.raw "
      "data.qcow2 "
      "&& cp secret data");
  const std::string descriptor =
      "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 32 FLAT \"" +
      (folder / "secret") + "\" 0\n" + std::string(60000, '\n');
  write_file(folder / "descriptor", as_bytes(descriptor));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"qcow2", "backing"}, {"qcow2", "data.qcow2"}, {"vmdk", "descriptor"}};
  for (const auto& [format, evil] : cases) {
    CAPTURE(evil);
    in_folder("cp good." + format + " image");
    const Wrapped rewrite(folder, "qemu-nbd",
                          "cd " + folder.path() + " && cat " + evil + " >image; exec $real \"$@\"");
    ByteVector read;
    const Thrown thrown =
        thrown_by([&] { read = import_of(folder / "image", {.format = format}); });
    CHECK(!contains(read, disk_of({7})));
    CHECK(!contains(read, disk_of({8})));
    CHECK(thrown.code != 0);
  }
}

TEST_CASE("backing files that lead in a circle, or are too many, are refused") {
  if (!can_run()) return;
  const Folder folder;
  const auto in_folder = [&](const std::string& command) {
    REQUIRE(run("cd " + folder.path() + " && " + command));
  };
  for (const std::string format : {"qcow2", "qed"}) {
    CAPTURE(format);
    in_folder("for i in a b c; do qemu-img create -q -f " + format + " $i 1M; done");
    in_folder("qemu-img rebase -u -f " + format + " -b b -F " + format + " a");
    in_folder("qemu-img rebase -u -f " + format + " -b $PWD/./c -F " + format + " b");
    in_folder("qemu-img rebase -u -f " + format + " -b a -F " + format + " c");
    const Thrown thrown = refusal_of(folder / "a", {.allow_backing = true});
    CHECK(thrown.code == ELOOP);
    CHECK(mentions(thrown, "in a circle"));
  }
  in_folder("qemu-img create -q -f qcow2 0 1M");
  in_folder("for i in $(seq 1 20); do qemu-img create -q -f qcow2 -b $((i - 1)) -F qcow2 $i; done");
  CHECK(is_zero(import_of(folder / "20", {.allow_backing = true})));
}

TEST_CASE("cut images are refused") {
  if (!can_run()) return;
  const Folder folder;
  // To the very end of a whole number of any format's clusters: a cut of padding loses nothing.
  std::vector<uint64_t> numbers(4096);
  for (uint64_t i = 3840; i < 4096; ++i) numbers[i] = i;
  write_file(folder / "disk.raw", disk_of(numbers));
  for (const std::string format :
       {"qcow2", "qcow2 -c", "qcow2 -o preallocation=metadata", "vmdk",
        "vmdk -o subformat=streamOptimized", "vhdx", "vhdx -o subformat=fixed", "vdi",
        "vdi -o static=on", "vpc", "qed"}) {
    REQUIRE(convert(folder / "disk.raw", format, folder / "image"));
    const uint64_t size = std::filesystem::file_size(folder / "image");
    for (const uint64_t cut : {uint64_t{1}, uint64_t{512}, uint64_t{65536}, size / 2, size - 600}) {
      CAPTURE(format);
      CAPTURE(cut);
      REQUIRE(convert(folder / "disk.raw", format, folder / "image"));
      REQUIRE(std::filesystem::file_size(folder / "image") == size);
      std::filesystem::resize_file(folder / "image", size - cut);
      const Thrown thrown =
          refusal_of(folder / "image", {.format = format.substr(0, format.find(' '))});
      CHECK(thrown.code == EINVAL);
      CHECK(mentions(thrown, "cut short"));
    }
  }
}

TEST_CASE("a damaged table of clusters is refused") {
  if (!can_run()) return;
  const Folder folder;
  write_file(folder / "disk.raw", example_disk());
  REQUIRE(convert(folder / "disk.raw", "qcow2", folder / "image"));
  ByteVector image = read_file(folder / "image");
  // The first L2 entries, wherever they are: found by pointing all clusters to one place.
  uint64_t l1_offset = 0;
  std::memcpy(&l1_offset, image.data() + 40, 8);
  l1_offset = __builtin_bswap64(l1_offset);
  uint64_t l2_offset = 0;
  std::memcpy(&l2_offset, image.data() + l1_offset, 8);
  l2_offset = __builtin_bswap64(l2_offset) & 0x00fffffffffffe00;
  std::memcpy(image.data() + l2_offset + 8, image.data() + l2_offset, 8);
  write_file(folder / "image", image);
  CHECK(mentions(refusal_of(folder / "image"), "corruptions"));
}

TEST_CASE("random damage to an image is an error or an image, never a crash or a hang") {
  if (!can_run()) return;
  const Folder folder;
  write_file(folder / "disk.raw", disk_of({1, 2, 0, 3}));
  const uint64_t seed = random_u64();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  for (const std::string format :
       {"qcow2 -c", "vmdk -o subformat=streamOptimized", "vdi", "qcow2"}) {
    CAPTURE(format);
    REQUIRE(convert(folder / "disk.raw", format, folder / "image"));
    const ByteVector good = read_file(folder / "image");
    for (int i = 0; i < 15; ++i) {
      ByteVector image = good;
      for (uint64_t changes = random() % 6 + 1; changes > 0; --changes)
        image[random() % (random() % 2 == 0 ? 128 : image.size())] =
            static_cast<std::byte>(random());
      write_file(folder / "image", image);
      // Within a disk of 64 MiB at most, so that a damaged size costs no time.
      const Thrown thrown = thrown_by([&] {
        const auto source = ImageSource::open(folder / "image", {});
        if (source->size_bytes() <= 64 << 20) read_all(*source);
      });
      CHECK((thrown.code == 0 || !thrown.text.empty()));
    }
  }
}

TEST_CASE("a partition table that needs more disk than there is shows a cut") {
  // A disk of 1 MiB with an MBR that has one partition of the given sectors.
  const auto mbr_disk = [](uint32_t first, uint32_t count, uint8_t type) {
    ByteVector disk(1 << 20);
    disk[446 + 4] = static_cast<std::byte>(type);
    std::memcpy(disk.data() + 446 + 8, &first, 4);
    std::memcpy(disk.data() + 446 + 12, &count, 4);
    disk[510] = std::byte{0x55};
    disk[511] = std::byte{0xaa};
    return disk;
  };
  const auto fault = [](const ByteVector& disk) {
    return find_partition_past_end(disk.size(),
                                   [&](uint64_t offset, MutableBytes into) {
                                     REQUIRE(offset + into.size() <= disk.size());
                                     std::memcpy(into.data(), disk.data() + offset, into.size());
                                   })
        .value_or("");
  };
  CHECK(fault(mbr_disk(1, 2047, 0x83)) == "");
  CHECK(fault(mbr_disk(1, 2048, 0x83)).find("partition 1 of its MBR") == 0);
  CHECK(fault(mbr_disk(UINT32_MAX, UINT32_MAX, 0x83)) != "");
  CHECK(fault(mbr_disk(1, UINT32_MAX, 0xee)) == "");  // protects a GPT
  ByteVector fat = mbr_disk(1, 2048, 0x83);           // a boot sector, not an MBR
  std::memcpy(fat.data() + 54, "FAT16", 5);
  CHECK(fault(fat) == "");

  for (const uint64_t sector : {512, 4096}) {
    ByteVector gpt = mbr_disk(1, UINT32_MAX, 0xee);
    const uint64_t sectors = gpt.size() / sector;
    const auto poke = [&](uint64_t offset, auto value) {
      std::memcpy(gpt.data() + sector + offset, &value, sizeof value);
    };
    std::memcpy(gpt.data() + sector, "EFI PART", 8);
    poke(24, uint64_t{1});
    poke(32, sectors - 1);
    poke(48, sectors - 34);
    poke(72, uint64_t{2});
    poke(80, uint32_t{128});
    poke(84, uint32_t{128});
    const uint64_t entry = 2 * sector - sector;  // relative to poke's base
    poke(entry, uint64_t{1});
    poke(entry + 32, uint64_t{40});
    poke(entry + 40, sectors - 34);
    CHECK(fault(gpt) == "");
    poke(entry + 40, sectors);
    CHECK(fault(gpt).find("partition 1 of its GPT") == 0);
    poke(48, sectors);
    CHECK(fault(gpt).find("its GPT uses") == 0);
    poke(32, sectors);
    CHECK(fault(gpt).find("the backup of its GPT") == 0);
    poke(32, UINT64_MAX);
    CHECK(fault(gpt) != "");
    poke(32, sectors - 1);
    poke(48, sectors - 34);
    for (const uint64_t value : {uint64_t{0}, sectors - 1, sectors, UINT64_MAX}) {
      poke(72, value);
      fault(gpt);  // wherever it says its table is, nothing past the end is read
    }
  }
  const ByteVector small(512);
  CHECK(fault(small) == "");

  if (!can_run()) return;
  const Folder folder;
  write_file(folder / "cut.img", mbr_disk(1, 4096, 0x83));
  const Thrown thrown = refusal_of(folder / "cut.img");
  CHECK(thrown.code == EINVAL);
  CHECK(mentions(thrown, "is cut short"));
}

TEST_CASE("exports of an NBD server are read like images, and its end is an error") {
  if (!can_run()) return;
  const Folder folder;
  const ByteVector disk = example_disk();
  write_file(folder / "disk.raw", disk);
  REQUIRE(run("cd " + folder.path() + " && qemu-nbd -r -t -f raw -k " + (folder / "socket") +
              " --pid-file=" + (folder / "pid") + " --fork disk.raw"));
  const pid_t server = std::stoi(to_text(read_file(folder / "pid")));
  const std::string uri = "nbd+unix:///?socket=" + (folder / "socket");
  CHECK(import_of(uri) == disk);
  CHECK(refusal_of(uri, {.format = "qcow2"}).code == EINVAL);
  CHECK(refusal_of("nbd+unix:///none?socket=" + (folder / "socket")).code != 0);

  const auto source = ImageSource::open(uri, {.requests_in_flight = 2, .request_bytes = 65536});
  const Thrown lost =
      thrown_by([&] { source->read_data([&](uint64_t, Bytes) { kill(server, SIGKILL); }); });
  CHECK(lost.code != 0);
  CHECK(refusal_of(uri).code != 0);
  CHECK(refusal_of("nbd+unix:///?socket=" + (folder / "none")).code != 0);
}

TEST_CASE("a server that tells of one byte at a time is not asked about each") {
  if (!run("nbdkit eval --version")) {
    MESSAGE("skipped: nbdkit is not installed");
    return;
  }
  const Folder folder;
  const ByteVector disk = disk_of({1, 0, 2, 3});
  write_file(folder / "disk", disk);
  REQUIRE(run("cd " + folder.path() +
              " && nbdkit -P pid -U socket eval get_size='echo 16384' "
              "pread='dd if=" +
              (folder / "disk") +
              " iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none' can_extents='exit 0' "
              "extents='echo >>" +
              (folder / "asked") + "; echo $4 1'"));
  // It writes this once it is in the background.
  while (read_file(folder / "pid").empty()) usleep(1000);
  const pid_t server = std::stoi(to_text(read_file(folder / "pid")));
  // An answer of one byte, and of 16384 bytes in all: more questions than there may be.
  const auto asked = [&] { return read_file(folder / "asked").size(); };
  const Thrown thrown = thrown_by([&] {
    const auto source = ImageSource::open("nbd+unix:///?socket=" + (folder / "socket"),
                                          {.interrupted = [&] { return asked() > 2000; }});
    CHECK(read_all(*source) == disk);
  });
  CHECK(thrown.text == "");
  CHECK(asked() <= 1024);
  kill(server, SIGTERM);
}

TEST_CASE("a server whose disk has 2^63 bytes is refused") {
  const Folder folder;
  const int listening = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, (folder / "socket").c_str());
  REQUIRE(bind(listening, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(listening, 1) == 0);
  for (const int highest : {0x80, 0xff, 0x7f}) {
    // The whole of the oldest handshake.
    std::thread server([&] {
      const int fd = accept(listening, nullptr, nullptr);
      char hello[152] = "NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53";
      hello[16] = static_cast<char>(highest);
      hello[27] = 1;  // it has flags
      [[maybe_unused]] ssize_t count = write(fd, hello, sizeof hello);
      while (read(fd, hello, sizeof hello) > 0) {
      }
      close(fd);
    });
    const Thrown thrown = refusal_of("nbd+unix:///?socket=" + (folder / "socket"));
    server.join();
    CAPTURE(thrown.text);
    CHECK(thrown.code == EFBIG);
    CHECK(mentions(thrown, "larger than a template can be"));
  }
  close(listening);
}

TEST_CASE("an answer that leaves out a part of what was asked for is refused, however it is cut") {
  const Folder folder;
  using Reply = OwnNbdServer::Reply;
  ByteVector disk = disk_of(std::vector<uint64_t>(32, 1));
  std::fill_n(disk.begin() + 40000, 20000, std::byte{0});
  const auto part = [&](uint64_t offset, uint64_t length) {
    return Bytes(disk).subspan(offset, length);
  };
  const auto import_from = [&](const OwnNbdServer::Read& read) {
    const OwnNbdServer server(folder / "socket", disk.size(),
                              [&](Reply& reply, uint64_t offset, uint32_t length) {
                                // What is looked at first, to see whether the disk is cut short.
                                if (length < 65536)
                                  return reply.data(offset, part(offset, length), true);
                                return read(reply, offset, length);
                              });
    const Thrown thrown = thrown_by([&] {
      const ByteVector imported =
          import_of(server.uri(), {.requests_in_flight = 2, .request_bytes = 65536});
      CHECK(imported == disk);
    });
    REQUIRE(unlink((folder / "socket").c_str()) == 0);
    return thrown;
  };

  const std::vector<OwnNbdServer::Read> good = {
      [&](Reply& reply, uint64_t at, uint32_t length) {
        return reply.data(at, part(at, length), true);
      },
      // Last part first, the middle at the end.
      [&](Reply& reply, uint64_t at, uint32_t length) {
        return reply.data(at + 50000, part(at + 50000, length - 50000), false) &&
               reply.data(at, part(at, 100), false) &&
               reply.data(at + 100, part(at + 100, 49900), false) && reply.end();
      },
      [&](Reply& reply, uint64_t at, uint32_t length) {
        if (at > 0) return reply.data(at, part(at, length), true);
        return reply.data(at, part(at, 40000), false) && reply.hole(40000, 20000, false) &&
               reply.hole(at, 0, false) &&
               reply.data(at + 60000, part(at + 60000, length - 60000), true);
      },
      [&](Reply& reply, uint64_t at, uint32_t length) {
        for (uint64_t i = 0; i < 3000; ++i)
          if (!reply.data(at + i, part(at + i, 1), false)) return false;
        return reply.data(at + 3000, part(at + 3000, length - 3000), true);
      }};
  for (size_t i = 0; i < good.size(); ++i) {
    CAPTURE(i);
    CHECK(import_from(good[i]).text == "");
  }

  const std::vector<std::pair<std::string, OwnNbdServer::Read>> evil = {
      {"leaves out",
       [&](Reply& reply, uint64_t at, uint32_t) { return reply.data(at, part(at, 1), true); }},
      {"leaves out",
       [&](Reply& reply, uint64_t at, uint32_t length) {
         return reply.data(at + 1, part(at + 1, length - 1), true);
       }},
      {"leaves out",
       [&](Reply& reply, uint64_t at, uint32_t length) {
         return reply.data(at, part(at, 512), false) && reply.hole(at + 1024, length - 1024, true);
       }},
      {"leaves out",
       [&](Reply& reply, uint64_t at, uint32_t length) {
         return reply.hole(at, length - 1, false) && reply.end();
       }},
      // As many bytes as were asked for, and as many as that with all of it among them.
      {"overlap",
       [&](Reply& reply, uint64_t at, uint32_t length) {
         return reply.data(at, part(at, length / 2), false) &&
                reply.data(at, part(at, length / 2), true);
       }},
      {"overlap",
       [&](Reply& reply, uint64_t at, uint32_t length) {
         return reply.data(at, part(at, length), false) && reply.hole(at + length - 1, 1, true);
       }},
      {"overlap",
       [&](Reply& reply, uint64_t at, uint32_t length) {
         return reply.data(at + 1000, part(at + 1000, 1000), false) &&
                reply.data(at, part(at, length), true);
       }},
      // Every second byte.
      {"too many parts", [&](Reply& reply, uint64_t at, uint32_t) {
         for (uint64_t i = 0; i < 3000; i += 2)
           if (!reply.data(at + i, part(at + i, 1), false)) return false;
         return reply.end();
       }}};
  for (size_t i = 0; i < evil.size(); ++i) {
    CAPTURE(i);
    const Thrown thrown = import_from(evil[i].second);
    CAPTURE(thrown.text);
    CHECK(thrown.code == EIO);
    CHECK(mentions(thrown, evil[i].first));
    CHECK(mentions(thrown, folder / "socket"));
  }

  // In what is looked at before the import as well.
  const OwnNbdServer server(folder / "socket", disk.size(),
                            [&](Reply& reply, uint64_t offset, uint32_t) {
                              return reply.data(offset, part(offset, 100), true);
                            });
  CHECK(mentions(refusal_of(server.uri()), "leaves out"));
}

TEST_CASE("a server that answers in drops is given up, however steadily they come") {
  const Folder folder;
  using Reply = OwnNbdServer::Reply;
  using std::chrono::milliseconds;
  const ByteVector disk = disk_of(std::vector<uint64_t>(2048, 1));
  const auto whole = [&](Reply& reply, uint64_t offset, uint32_t length) {
    return reply.data(offset, Bytes(disk).subspan(offset, length), true);
  };
  const std::vector<std::pair<std::string, OwnNbdServer::Read>> slow = {
      {"a byte at a time",
       [&](Reply& reply, uint64_t offset, uint32_t length) {
         if (length < 65536) return whole(reply, offset, length);
         for (uint64_t i = 0; i < length; ++i)
           if (!reply.wait(milliseconds(20)) ||
               !reply.data(offset + i, Bytes(disk).subspan(offset + i, 1), i + 1 == length))
             return false;
         return true;
       }},
      {"a request at a time", [&](Reply& reply, uint64_t offset, uint32_t length) {
         if (length >= 65536 && !reply.wait(milliseconds(200))) return false;
         return whole(reply, offset, length);
       }}};
  for (const auto& [name, read] : slow) {
    CAPTURE(name);
    const OwnNbdServer server(folder / "socket", disk.size(), read);
    const auto begin = std::chrono::steady_clock::now();
    const Thrown thrown = thrown_by([&] {
      import_of(server.uri(), {.requests_in_flight = 1,
                               .request_bytes = 65536,
                               .stall_seconds_max = 1,
                               .interrupted = [&] {
                                 return std::chrono::steady_clock::now() - begin >
                                        std::chrono::seconds(60);
                               }});
    });
    CAPTURE(thrown.text);
    CHECK(thrown.code == ETIMEDOUT);
    REQUIRE(unlink((folder / "socket").c_str()) == 0);
  }
}

TEST_CASE("an image without a name is refused") {
  const Thrown thrown = refusal_of("");
  CHECK(thrown.code == EINVAL);
  CHECK(mentions(thrown, "its name is empty"));
}

TEST_CASE("images that only qemu knows are read by their content, not refused by their name") {
  if (!can_run()) return;
  const Folder folder;
  const ByteVector disk = disk_of({1, 2, 0, 3});
  write_file(folder / "disk.raw", disk);
  REQUIRE(convert(folder / "disk.raw", "parallels", folder / "disk.parallels"));
  CHECK(import_of(folder / "disk.parallels") == disk);
  write_file(folder / "none.parallels", disk);
  CHECK(mentions(refusal_of(folder / "none.parallels"), "is called .parallels"));
}

TEST_CASE("without qemu's programs the package that has them is named") {
  const Folder folder;
  write_file(folder / "disk.raw", example_disk());
  const int image = open((folder / "disk.raw").c_str(), O_RDONLY | O_CLOEXEC);
  const std::string path = getenv("PATH");
  setenv("PATH", folder.path().c_str(), 1);
  const Thrown no_img = refusal_of(folder / "disk.raw");
  const Thrown no_nbd = thrown_by([&] { QemuNbd({}, "image", image); });
  setenv("PATH", path.c_str(), 1);
  close(image);
  CHECK(no_img.code == ENOENT);
  CHECK(mentions(no_img, "install qemu-utils"));
  CHECK(no_nbd.code == ENOENT);
  CHECK(mentions(no_nbd, "install qemu-utils"));
}

TEST_CASE("a killed import leaves none of qemu's programs behind") {
  if (!can_run()) return;
  const Folder folder;
  write_file(folder / "disk.raw", example_disk());
  for (const std::string program : {"qemu-img", "qemu-nbd"}) {
    CAPTURE(program);
    // One that was started and does nothing yet.
    REQUIRE(run("rm -f " + (folder / "pid") + " && mkfifo " + (folder / "pid")));
    const Wrapped slow(folder, program, "echo $$ >" + (folder / "pid") + "; exec sleep 600");
    const pid_t import = fork();
    REQUIRE(import >= 0);
    if (import == 0) {
      try {
        ImageSource::open(folder / "disk.raw", {});
      } catch (...) {
      }
      _exit(0);
    }
    const pid_t child = std::stoi(to_text(read_file(folder / "pid")));
    const int ended = static_cast<int>(syscall(SYS_pidfd_open, child, 0));
    REQUIRE(ended >= 0);
    kill(import, SIGKILL);
    REQUIRE(waitpid(import, nullptr, 0) == import);
    pollfd watched{ended, POLLIN, 0};
    CHECK(poll(&watched, 1, 10000) == 1);
    kill(child, SIGKILL);
    close(ended);
  }
}

TEST_CASE("a qemu-nbd that is killed while it reads is an error, and none is left behind") {
  if (!can_run()) return;
  const Folder folder;
  write_file(folder / "disk.raw", example_disk());
  REQUIRE(convert(folder / "disk.raw", "qcow2 -c", folder / "image"));
  {
    const auto source =
        ImageSource::open(folder / "image", {.requests_in_flight = 2, .request_bytes = 65536});
    const auto servers = find_servers();
    REQUIRE(servers.size() == 1);
    const Thrown lost =
        thrown_by([&] { source->read_data([&](uint64_t, Bytes) { kill(servers[0], SIGKILL); }); });
    CHECK(lost.code != 0);
    CHECK(mentions(lost, "image"));
  }
  CHECK(find_servers().empty());
}

TEST_CASE("a server that does not answer is an error, and does not hold up the end") {
  if (!can_run()) return;
  const Folder folder;
  write_file(folder / "disk.raw", example_disk());
  REQUIRE(convert(folder / "disk.raw", "qcow2 -c", folder / "image"));
  {
    const auto source = ImageSource::open(
        folder / "image",
        {.requests_in_flight = 2, .request_bytes = 65536, .stall_seconds_max = 1});
    const auto servers = find_servers();
    REQUIRE(servers.size() == 1);
    kill(servers[0], SIGSTOP);
    CHECK(thrown_by([&] { source->read_data([](uint64_t, Bytes) {}); }).code == ETIMEDOUT);
  }
  CHECK(find_servers().empty());
}

TEST_CASE("a file that is cut while it is read is an error") {
  if (!can_run()) return;
  const Folder folder;
  write_file(folder / "disk.raw", example_disk());
  REQUIRE(convert(folder / "disk.raw", "qcow2", folder / "image"));
  for (const std::string name : {"disk.raw", "image"}) {
    CAPTURE(name);
    const auto source =
        ImageSource::open(folder / name, {.requests_in_flight = 1, .request_bytes = 65536});
    const Thrown thrown = thrown_by([&] {
      source->read_data([&](uint64_t offset, Bytes) {
        if (offset == 0) std::filesystem::resize_file(folder / name, 512 << 10);
      });
    });
    CHECK(thrown.code == EIO);
    CHECK(mentions(thrown, "was cut while it was being read"));
  }
}

TEST_CASE("an interruption is heeded at once, before and during the reading") {
  if (!can_run()) return;
  const Folder folder;
  write_file(folder / "disk.raw", example_disk());
  bool is_interrupted = false;
  {
    const auto source =
        ImageSource::open(folder / "disk.raw",
                          {.request_bytes = 65536, .interrupted = [&] { return is_interrupted; }});
    CHECK(thrown_by([&] {
            source->read_data([&](uint64_t, Bytes) { is_interrupted = true; });
          }).code == EINTR);
  }
  CHECK(find_servers().empty());
  CHECK(refusal_of(folder / "disk.raw", {.interrupted = [] { return true; }}).code == EINTR);
}

}  // namespace tplstore::image_source_test
