#include "slots.h"

#include <algorithm>
#include <cassert>

namespace gimbal {
namespace {

// A placement in the common shape: absent GPUs and slots are empty.
std::vector<int32_t> widened(const int32_t* placement, int32_t gpus, int32_t slots, const PlacementPair& pair) {
  const size_t cells = static_cast<size_t>(pair.layers) * static_cast<size_t>(pair.gpus());
  std::vector<int32_t> wide(cells * static_cast<size_t>(pair.slots()), -1);
  for (int32_t l = 0; l < pair.layers; ++l) {
    for (int32_t g = 0; g < gpus; ++g) {
      const int32_t* row = placement + (int64_t{l} * gpus + g) * slots;
      std::copy(row, row + slots, wide.begin() + (int64_t{l} * pair.gpus() + g) * pair.slots());
    }
  }
  return wide;
}

}  // namespace

Slots::Slots(const PlacementPair& pair)
    : gpus_(pair.gpus()),
      slots_(pair.slots()),
      now_(widened(pair.from, pair.from_gpus, pair.from_slots, pair)),
      target_(widened(pair.to, pair.to_gpus, pair.to_slots, pair)) {
  for (const int32_t g : pair.dead_gpus) {
    for (int32_t l = 0; l < pair.layers; ++l) {
      std::fill_n(now_.begin() + static_cast<std::ptrdiff_t>(cell(l, g)) * slots_, slots_, -1);
    }
  }
}

int32_t Slots::find(size_t cell, int32_t expert) const {
  const int32_t* held = now(cell);
  const int32_t* at = std::find(held, held + slots_, expert);
  return at == held + slots_ ? -1 : static_cast<int32_t>(at - held);
}

bool Slots::is_settled(size_t cell, int32_t slot) const {
  const int32_t e = target(cell)[slot];
  if (e < 0 || !holds(cell, e)) return false;
  if (now(cell)[slot] == e) return true;
  const int32_t* end = target(cell) + slot;
  if (std::find(target(cell), end, e) != end) return false;
  for (int32_t k = 0; k < slots_; ++k) {
    if (k != slot && target(cell)[k] == e && now(cell)[k] == e) return false;
  }
  return true;
}

void Slots::clear_slot(int32_t layer, int32_t gpu, int32_t slot, int32_t round, std::vector<LocalCopy>* copies) {
  const size_t c = cell(layer, gpu);
  want_.assign(static_cast<size_t>(slots_), -1);
  const auto is_wanted = [&](int32_t e) { return std::find(want_.begin(), want_.end(), e) != want_.end(); };
  for (int32_t k = 0; k < slots_; ++k) {
    if (is_settled(c, k)) want_[static_cast<size_t>(k)] = target(c)[k];
  }
  // The rest stays where it is, or goes to the first slot to spare.
  for (int32_t k = 0; k < slots_; ++k) {
    const int32_t e = now(c)[k];
    if (e >= 0 && k != slot && want_[static_cast<size_t>(k)] < 0 && !is_wanted(e)) want_[static_cast<size_t>(k)] = e;
  }
  for (int32_t k = 0; k < slots_; ++k) {
    const int32_t e = now(c)[k];
    if (e < 0 || is_wanted(e)) continue;
    int32_t spare = 0;
    while (spare < slots_ && (spare == slot || want_[static_cast<size_t>(spare)] >= 0)) ++spare;
    assert(spare < slots_);
    want_[static_cast<size_t>(spare)] = e;
  }
  const bool done = rearrange(layer, gpu, false, round, copies, nullptr);
  assert(done);
}

bool Slots::finish(int32_t layer, int32_t gpu, bool may_stage, int32_t round, std::vector<LocalCopy>* copies, bool* staged) {
  const int32_t* shall = target(cell(layer, gpu));
  want_.assign(shall, shall + slots_);
  return rearrange(layer, gpu, may_stage, round, copies, staged);
}

// Brings want_ about. A slot is written once nothing that is wanted elsewhere must still be read from it; where only circles
// are left, one of each is put aside: into a slot that shall stay empty, else into staging.
bool Slots::rearrange(int32_t layer, int32_t gpu, bool may_stage, int32_t round, std::vector<LocalCopy>* copies, bool* staged) {
  const size_t c = cell(layer, gpu);
  int32_t* held = &now_[c * static_cast<size_t>(slots_)];
  std::vector<int32_t> source(static_cast<size_t>(slots_), -1);  // of slots still to be written
  for (int32_t k = 0; k < slots_; ++k) {
    const int32_t e = want_[static_cast<size_t>(k)];
    if (e >= 0 && held[k] != e) source[static_cast<size_t>(k)] = find(c, e);
  }
  const auto is_read = [&](int32_t k) { return std::find(source.begin(), source.end(), k) != source.end(); };
  const auto copy = [&](int32_t from, int32_t to) { copies->push_back({round, layer, gpu, from, to}); };
  // It stays, so others may read it instead.
  const auto is_second_copy = [&](int32_t k, int32_t of) {
    return k != of && source[static_cast<size_t>(k)] < 0 && held[k] == held[of];
  };
  for (;;) {
    bool wrote = false;
    int32_t blocked = -1;
    for (int32_t k = 0; k < slots_; ++k) {
      if (source[static_cast<size_t>(k)] < 0) continue;
      if (is_read(k)) {
        blocked = k;
        continue;
      }
      copy(source[static_cast<size_t>(k)], k);
      held[k] = want_[static_cast<size_t>(k)];
      source[static_cast<size_t>(k)] = -1;
      wrote = true;
    }
    if (wrote) continue;
    if (blocked < 0) break;
    int32_t other = 0;
    while (other < slots_ && !is_second_copy(other, blocked)) ++other;
    if (other == slots_) {
      other = 0;
      while (other < slots_ && (want_[static_cast<size_t>(other)] >= 0 || is_read(other))) ++other;
      if (other == slots_) {
        if (!may_stage) return false;
        *staged = true;
      }
      copy(blocked, other);
    }
    std::replace(source.begin(), source.end(), blocked, other);
  }
  for (int32_t k = 0; k < slots_; ++k) {
    if (want_[static_cast<size_t>(k)] < 0) held[k] = -1;
  }
  return true;
}

}  // namespace gimbal
