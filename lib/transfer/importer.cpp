// One pass over the image: hash, look up, collect what is new into segments, publish them, then the
// manifest.
#include "transfer/importer.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "base/names.h"
#include "base/text.h"
#include "base/units.h"
#include "template/gc_lock.h"
#include "template/import_journal.h"
#include "template/manifest.h"
#include "template/segment.h"
#include "template/store_identity.h"
#include "template/template_tables.h"
#include "transfer/block_index.h"
#include "transfer/block_matcher.h"
#include "transfer/segment_writer.h"

namespace tplstore {
namespace {

constexpr uint32_t kNotReferenced = UINT32_MAX;

class Import {
 public:
  Import(const TemplateStorage& storage, const std::string& name,
         const std::function<std::unique_ptr<ImageSource>()>& open_source,
         const ImportOptions& options)
      : backend_(storage.store),
        segments_(storage.segments),
        name_(name),
        options_(options),
        identity_(load_identity(backend_)),
        others_(backend_, name),
        blocks_(segments_),
        writer_(segments_, blocks_, identity_.secret, options.segments_at_once_max),
        matcher_(blocks_, index_, &writer_),
        builder_(identity_.secret) {
    check_name("template", name_);
    gc_lock_ = hold_gc_lock(backend_, LockMode::kShared, name_);
    if (!gc_lock_)
      fail(EBUSY, name_, "a template is being removed or gc is running; try again when it is done");
    refuse_taken_name();
    source_ = open_source();
    if (source_->size_bytes() > options_.size_bytes_max)
      fail(EFBIG, name_, "its disk has {}, and it may have {} at most: allow more with --max-size",
           format_size(source_->size_bytes()), format_size(options_.size_bytes_max));
  }

  ImportResult run() {
    journal_.emplace(backend_, name_, source_->size_bytes());
    try {
      return read_and_store();
    } catch (const std::exception& error) {
      std::string_view why = error.what();
      if (const std::string object = name_ + ": "; why.starts_with(object))
        why.remove_prefix(object.size());
      journal_->tell_failure(why);
      throw;
    }
  }

 private:
  ImportResult read_and_store() {
    // Another import of this name may have ended between our first look and our lock.
    refuse_taken_name();
    // Before the index is loaded: what is published while it is must be in one of them.
    unseen_ = others_.take_news();
    result_.unreadable_segments = index_.load({backend_, segments_}, blocks_);
    building_ = index_.begin_segment();

    manifest_.name = name_;
    manifest_.store = identity_.uuid;
    manifest_.uuid = random_uuid();
    manifest_.size_bytes = source_->size_bytes();
    manifest_.created_ns = now_unix_ns();
    manifest_.source = printable(source_->description()).substr(0, kSourceTextBytesMax);
    report_progress(0);
    ContentIdHasher content_id(manifest_.size_bytes);
    try {
      source_->read_data([&](uint64_t offset, Bytes data) {
        content_id.add(offset, data);
        add_data(offset, data);
      });
    } catch (...) {
      // What was read is there for the next import.
      while (!pending_.empty()) store_oldest();
      throw;
    }
    while (!pending_.empty()) store_oldest();
    remove_what_others_stored();
    if (!builder_.empty()) publish_segment();
    end_segments();
    manifest_.content_id = content_id.finish();
    publish_manifest();
    put_tables();
    report_progress(manifest_.size_bytes);
    result_.zero_bytes = round_up(manifest_.size_bytes, kBlockBytes) - result_.stored_bytes -
                         result_.referenced_bytes;
    result_.info = show_template(backend_, name_);
    return result_;
  }

  void refuse_taken_name() {
    if (load_manifest_uuid(backend_, name_))
      fail(EEXIST, name_, "a template of this name exists: choose another name or remove it first");
  }

  void check_interrupted() {
    if (options_.interrupted && options_.interrupted())
      fail(EINTR, name_, "interrupted; import this name again to continue, or remove it");
  }

  void report_progress(uint64_t done_bytes) {
    if (options_.progress) options_.progress(done_bytes, manifest_.size_bytes);
  }

  // Data at a multiple of the block size. The disk's last block may be short; its rest is zero.
  void add_data(uint64_t offset, Bytes data) {
    ensure(offset % kBlockBytes == 0, "an image is read in whole blocks");
    if (const uint64_t whole = round_down(data.size(), kBlockBytes); whole < data.size()) {
      ByteVector last(kBlockBytes);
      std::copy(data.begin() + static_cast<ptrdiff_t>(whole), data.end(), last.begin());
      add_blocks(offset / kBlockBytes, data.first(whole));
      const Bytes block(last);
      add_blocks((offset + whole) / kBlockBytes, block, std::move(last));
    } else {
      add_blocks(offset / kBlockBytes, data);
    }
  }

  // Begins to look for them among what is stored, and stores what was not found of earlier ones.
  void add_blocks(uint64_t first_block, Bytes data, ByteVector own = {}) {
    Pending& pending = pending_.emplace_back();
    pending.own = std::move(own);
    pending.end_bytes = first_block * kBlockBytes + data.size();
    pending.building = building_;
    std::vector<BlockMatcher::Wanted> wanted;
    for (uint64_t i = 0; i < data.size() / kBlockBytes; ++i) {
      const Bytes block = data.subspan(i * kBlockBytes, kBlockBytes);
      if (is_zero(block)) continue;
      wanted.push_back({content_hash(block, identity_.secret), block, std::nullopt});
      pending.blocks.push_back(first_block + i);
    }
    pending.batch = matcher_.begin(std::move(wanted), building_);
    if (pending_.size() > ImageSource::kPiecesKept) store_oldest();
  }

  void store_oldest() {
    Pending pending = std::move(pending_.front());
    pending_.pop_front();
    std::vector<BlockMatcher::Wanted> wanted = matcher_.end(std::move(pending.batch));
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (!wanted[i].match) find_just_stored(wanted[i], pending.building);
      if (wanted[i].match) {
        result_.referenced_bytes += kBlockBytes;
      } else {
        store(wanted[i]);
      }
      // Numbered only now: what is stored below may end the segment.
      manifest_.append_block(pending.blocks[i], reference(wanted[i].match->segment),
                             wanted[i].match->block);
      if (builder_.full()) remove_what_others_stored();
      if (builder_.full()) publish_segment();
    }
    check_object_bytes(manifest_, options_.manifest_bytes_max);
    check_interrupted();
    report_progress(std::min(pending.end_bytes, manifest_.size_bytes));
  }

  // The same content among the blocks that were stored since the matcher looked.
  void find_just_stored(BlockMatcher::Wanted& wanted, uint32_t published_before) {
    const auto candidates = index_.find(wanted.hash);
    for (const BlockLocation& location : candidates.all()) {
      if (location.segment < published_before) continue;
      const bool is_equal = location.segment == building_
                                ? std::memcmp(builder_.block(location.block).data(),
                                              wanted.block.data(), kBlockBytes) == 0
                                : matcher_.has_bytes(location, wanted.block);
      if (!is_equal) continue;
      wanted.match = location;
      return;
    }
  }

  void store(BlockMatcher::Wanted& wanted) {
    if (builder_.empty()) before_building_ = {manifest_.runs.size(), manifest_.segments.size()};
    const BlockLocation location{building_, builder_.add(wanted.block, wanted.hash)};
    index_.insert(wanted.hash, location);
    wanted.match = location;
    result_.stored_bytes += kBlockBytes;
  }

  // The manifest's number of a segment.
  uint32_t reference(uint32_t segment) {
    if (segment >= referenced_.size()) referenced_.resize(index_.segment_count(), kNotReferenced);
    if (referenced_[segment] == kNotReferenced) {
      referenced_[segment] = static_cast<uint32_t>(manifest_.segments.size());
      numbers_.push_back(segment);
      const auto& entry = index_.segment(segment);
      manifest_.segments.push_back({entry.name, entry.block_count, 0});
      if (entry.block_count != 0) {
        journal_->add(entry.name);
        folders_.insert(segment_folder(entry.name));
      }
    }
    return referenced_[segment];
  }

  // Has the index know what other imports have published since it was last asked.
  bool find_what_others_stored() {
    const std::vector<Hash128> news = others_.take_news();
    unseen_.insert(unseen_.end(), news.begin(), news.end());
    const uint32_t before = index_.segment_count();
    std::erase_if(unseen_, [&](const Hash128& name) {
      if (index_.has_segment(name)) return true;
      try {
        index_.add_stored(name, blocks_.hold(name, 0)->read_table(identity_.secret));
        return true;
      } catch (const Error&) {
        return false;  // It is not there yet.
      }
    });
    return index_.segment_count() > before;
  }

  // What is in the builder and was stored by others meanwhile need not be stored.
  void remove_what_others_stored() {
    if (builder_.empty() || !find_what_others_stored()) return;
    std::vector<BlockMatcher::Wanted> built;
    for (uint32_t i = 0; i < builder_.block_count(); ++i)
      built.push_back({builder_.hash(i), builder_.block(i), std::nullopt});
    matcher_.match(built, std::nullopt, building_);
    const auto is_stored = [](const BlockMatcher::Wanted& block) {
      return block.match.has_value();
    };
    const auto stored = std::count_if(built.begin(), built.end(), is_stored);
    if (stored == 0) return;
    result_.stored_bytes -= static_cast<uint64_t>(stored) * kBlockBytes;
    result_.referenced_bytes += static_cast<uint64_t>(stored) * kBlockBytes;

    // The rest is built anew, under another number: the index knows the old one by its places.
    SegmentBuilder rest(identity_.secret);
    const uint32_t rest_number = index_.begin_segment();
    for (BlockMatcher::Wanted& block : built) {
      if (block.match) continue;
      block.match = {rest_number, rest.add(block.block, block.hash)};
      index_.insert(block.hash, *block.match);
    }
    const auto moved = [&](BlockLocation location) {
      return location.segment == building_ ? *built[location.block].match : location;
    };
    rewrite_manifest(before_building_, moved);
    builder_ = std::move(rest);
    building_ = rest_number;
  }

  struct Extent {
    size_t runs = 0, segments = 0;
  };

  // The manifest from there on, each block where `moved` says.
  template <typename Moved>
  void rewrite_manifest(const Extent& from, const Moved& moved) {
    const std::vector<TemplateRun> runs(manifest_.runs.begin() + static_cast<ptrdiff_t>(from.runs),
                                        manifest_.runs.end());
    const std::vector<uint32_t> numbers = numbers_;
    manifest_.runs.resize(from.runs);
    for (; numbers_.size() > from.segments; numbers_.pop_back())
      referenced_[numbers_.back()] = kNotReferenced;
    manifest_.segments.resize(from.segments);
    for (const TemplateRun& run : runs) {
      for (uint32_t i = 0; i < run.count; ++i) {
        const BlockLocation now = moved({numbers[run.segment], run.segment_block + i});
        manifest_.append_block(run.block + i, reference(now.segment), now.block);
      }
    }
  }

  void publish_segment() {
    const uint32_t block_count = builder_.block_count();
    const Hash128 name = builder_.name();
    builder_ = writer_.write(*journal_, building_, std::move(builder_));
    ManifestSegment& entry = manifest_.segments[reference(building_)];
    entry.name = name;
    entry.block_count = block_count;
    index_.name_segment(building_, name, block_count);
    building_ = index_.begin_segment();
  }

  // Waits for all that were published, and takes over what became of them.
  void end_segments() {
    std::map<uint32_t, SegmentWriter::Written> rotated;
    for (const SegmentWriter::Written& written : writer_.finish()) {
      if (!written.is_new) {
        result_.stored_bytes -= written.block_count * uint64_t{kBlockBytes};
        result_.referenced_bytes += written.block_count * uint64_t{kBlockBytes};
      }
      if (written.rotations == 0) continue;
      index_.name_segment(written.number, written.name, written.block_count);
      rotated.emplace(written.number, written);
    }
    if (rotated.empty()) return;
    rewrite_manifest({}, [&](BlockLocation location) {
      if (const auto found = rotated.find(location.segment); found != rotated.end()) {
        const uint32_t count = found->second.block_count;
        location.block = (location.block + count - found->second.rotations) % count;
      }
      return location;
    });
  }

  void publish_manifest() {
    journal_->commit();
    // Another import that is still running may have published what we refer to, and its folder may
    // not be durable yet.
    for (const std::string& folder : folders_) segments_.sync_folder(folder);
    if (!backend_.put_new(manifest_path(name_), encode_manifest(manifest_)))
      fail(EEXIST, name_, "a template of this name was made meanwhile");
    journal_->remove();
  }

  void put_tables() {
    try {
      put_template_tables(backend_, manifest_, blocks_, identity_.secret);
    } catch (const Error&) {
      // First boots read more for want of it.
    }
  }

  Backend& backend_;
  Backend& segments_;
  const std::string name_;
  const ImportOptions& options_;
  const StoreIdentity identity_;
  std::unique_ptr<HeldLock> gc_lock_;
  std::unique_ptr<ImageSource> source_;
  std::optional<ImportJournal> journal_;

  OtherImports others_;
  std::vector<Hash128> unseen_;  // segments that others have named, and that were not there yet

  BlockSource blocks_;
  BlockIndex index_;
  SegmentWriter writer_;
  BlockMatcher matcher_;
  SegmentBuilder builder_;
  uint32_t building_ = 0;  // the index's number of the segment in the builder

  // What was read and is being looked for.
  struct Pending {
    ByteVector own;  // bytes of its that are not the source's
    std::vector<uint64_t> blocks;
    uint64_t end_bytes;
    uint32_t building;  // the number of the segment in the builder when it was begun
    std::unique_ptr<BlockMatcher::Batch> batch;
  };
  std::deque<Pending> pending_;

  Manifest manifest_;
  std::vector<uint32_t> referenced_;  // index's number → manifest's
  std::vector<uint32_t> numbers_;     // and back
  Extent before_building_;  // of the manifest, when the segment was begun that is being built
  std::set<std::string> folders_;  // of segments that others have published
  ImportResult result_;
};

}  // namespace

ImportResult import_template(const TemplateStorage& storage, const std::string& name,
                             const std::string& source, const ImportOptions& options) {
  const auto open_source = [&] {
    return ImageSource::open(source, {.format = options.format,
                                      .allow_backing = options.allow_backing,
                                      .interrupted = options.interrupted});
  };
  return import_from(storage, name, open_source, options);
}

ImportResult import_from(const TemplateStorage& storage, const std::string& name,
                         const std::function<std::unique_ptr<ImageSource>()>& open_source,
                         const ImportOptions& options) {
  return Import(storage, name, open_source, options).run();
}

}  // namespace tplstore
