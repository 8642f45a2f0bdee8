// Checks of single accesses by the threads of a block: to memory that a device may touch, in bounds, written before it is
// read, and not in conflict with what another thread does between the same synchronisations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "execution.h"
#include "fault.h"

namespace hostlayer {

// Before a launch is run: the tables that its checks need.
void prepare_checks(const Launch& launch);

// An access at `address` by code that returns to `pc`. `aligned` says that the type demands the alignment of its size.
// `frame` is an address on the stack of that code: it tells a thread of the block from host code.
void check_access(uintptr_t address, size_t bytes, Access access, bool aligned, const void* pc, const void* frame);
void check_words(uintptr_t address, unsigned words, Access access, const void* pc, const void* frame);

}  // namespace hostlayer
