// Binary search among the runs, then one piece for each segment that a request touches.
#include "template/template_image.h"

#include <algorithm>

#include "template/template_tables.h"

namespace tplstore {

TemplateImage::TemplateImage(BlockSource& blocks, HeldManifest held) : held_(std::move(held)) {
  for (const ManifestSegment& segment : manifest_.segments)
    segments_.push_back(blocks.hold(segment.name, segment.block_count));
}

std::shared_ptr<TemplateImage> TemplateImage::open(Backend& backend, BlockSource& blocks,
                                                   const std::string& name) {
  return std::shared_ptr<TemplateImage>(new TemplateImage(blocks, hold_manifest(backend, name)));
}

std::vector<TemplateRun>::const_iterator TemplateImage::find_run(uint64_t block) const {
  return std::upper_bound(manifest_.runs.begin(), manifest_.runs.end(), block,
                          [](uint64_t at, const TemplateRun& run) { return at < run.end(); });
}

void TemplateImage::plan_read(uint64_t offset, MutableBytes into, ReadPlan& plan,
                              CellWindow* window) const {
  const uint64_t available = offset < size_bytes() ? size_bytes() - offset : 0;
  const uint64_t end = offset + std::min<uint64_t>(into.size(), available);
  const auto zero = [&](uint64_t from, uint64_t to) {
    std::memset(into.data() + (from - offset), 0, to - from);
  };
  uint64_t position = offset;
  for (auto run = find_run(offset / kBlockBytes); position < end; ++run) {
    const uint64_t run_begin =
        run == manifest_.runs.end() ? end : std::min(end, run->block * kBlockBytes);
    if (position < run_begin) {
      zero(position, run_begin);
      position = run_begin;
    }
    if (position == end) break;
    const uint64_t piece_end = std::min(end, run->end() * kBlockBytes);
    const uint64_t in_segment =
        run->segment_block * uint64_t{kBlockBytes} + (position - run->block * kBlockBytes);
    segments_[run->segment]->plan_read(
        in_segment, into.subspan(position - offset, piece_end - position), plan, window);
    position = piece_end;
  }
  if (into.size() > end - offset)
    std::memset(into.data() + (end - offset), 0, into.size() - (end - offset));
}

void TemplateImage::read(uint64_t offset, MutableBytes into) const {
  ReadPlan plan;
  plan_read(offset, into, plan);
  plan.run();
}

void TemplateImage::find_cells(uint64_t first, uint64_t count, size_t run_index,
                               std::vector<CellPlace>& places) const {
  const uint64_t end = std::min(first + count, blocks_of(size_bytes()));
  for (auto run = find_run(first); run != manifest_.runs.end() && run->block < end; ++run) {
    const uint64_t from = std::max(first, run->block);
    const auto blocks = static_cast<uint32_t>(std::min(end, run->end()) - from);
    const auto block = static_cast<uint32_t>(run->segment_block + (from - run->block));
    if (auto place = segments_[run->segment]->place(block, blocks, run_index, from))
      places.push_back(std::move(*place));
  }
}

void TemplateImage::take_tables(Backend& store) const {
  // Many VMs may boot from it at once, and each of them asks for this.
  if (std::ranges::all_of(segments_, [](const auto& segment) { return segment->has_table(); }))
    return;
  const auto tables = get_template_tables(store, manifest_);
  if (!tables) return;
  Bytes rest = *tables;
  for (size_t i = 0; i < segments_.size(); ++i) {
    const uint64_t bytes = manifest_.segments[i].block_count * sizeof(Hash128);
    segments_[i]->take_table(rest.first(bytes));
    rest = rest.subspan(bytes);
  }
}

TemplateImage::Run TemplateImage::run_at(uint64_t block, uint64_t count) const {
  const uint64_t wanted = std::min<uint64_t>(count, UINT32_MAX);
  auto run = find_run(block);
  const bool is_hole = run == manifest_.runs.end() || run->block > block;
  uint64_t found;
  if (is_hole) {
    found = run == manifest_.runs.end() ? wanted : run->block - block;
  } else {
    uint64_t end = run->end();
    while (end - block < wanted && ++run != manifest_.runs.end() && run->block == end)
      end = run->end();
    found = end - block;
  }
  return {static_cast<uint32_t>(std::min(found, wanted)), is_hole};
}

}  // namespace tplstore
