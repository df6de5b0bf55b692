// Checked pieces: asked for, read backend by backend, looked at, and read elsewhere where need be.
// And the steps that follow.
#include "backend/read_plan.h"

#include <algorithm>

namespace tplstore {

void ReadPlan::run_checked() {
  // So many are read at once.
  constexpr size_t kBatchMax = 16;
  const std::span<CheckedPiece> all = checked_.pieces();
  std::ranges::sort(all, std::less(),
                    [](const CheckedPiece& piece) { return &piece.object->owner(); });
  for (std::span<CheckedPiece> rest = all; !rest.empty();) {
    Backend& owner = rest[0].object->owner();
    std::array<ReadPiece, kBatchMax> batch;
    std::array<CheckedPiece*, kBatchMax> begun;
    size_t count = 0;
    while (!rest.empty() && &rest[0].object->owner() == &owner && count < kBatchMax) {
      if (rest[0].check->begin()) {
        batch[count] = rest[0];
        begun[count++] = rest.data();
      }
      rest = rest.subspan(1);
    }
    std::array<std::exception_ptr, kBatchMax> errors;
    try {
      if (count == 1) {
        batch[0].object->read(batch[0].offset, batch[0].into);
      } else if (count > 1) {
        const BatchFailures failures = owner.read_batch(std::span(batch).first(count));
        for (const BatchFailures::Failure& failure : failures.all())
          errors[failure.piece] = failure.error;
      }
    } catch (...) {
      errors.fill(std::current_exception());
    }
    for (size_t i = 0; i < count; ++i)
      begun[i]->is_right = begun[i]->check->end(batch[i], errors[i]);
  }
  for (const CheckedPiece& piece : all)
    if (!piece.is_right) piece.check->read_elsewhere(piece.offset, piece.into);
}

// Nobody waits for others before all that others may wait for is done.
void ReadPlan::run_steps() {
  for (const auto& step : steps_) step->use_what_was_read();
  for (const auto& step : steps_) step->wait_for_others();
}

}  // namespace tplstore
