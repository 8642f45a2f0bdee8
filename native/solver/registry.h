// Which backends this build knows, and which one a choice means.
#pragma once

#include "backend.h"
#include "solve.h"

namespace gimbal {

Backend& cpu_backend();

// `device` is the CUDA device's number. Throws Error(kBackendUnavailable) where the choice is forced and missing; never falls
// back in silence.
Backend& select_backend(BackendChoice choice, int32_t device);

}  // namespace gimbal
