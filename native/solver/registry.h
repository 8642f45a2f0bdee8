// Which backends this build knows, and which one a choice means.
#pragma once

#include <string>

#include "backend.h"
#include "solve.h"

namespace gimbal {

Backend& cpu_backend();

struct Selection {
  Backend& backend;
  std::string reason;  // where the choice was free and no GPU was taken: why
};

// `device` is the CUDA device's number. Throws Error(kBackendUnavailable) where the choice is forced and missing.
Selection select_backend(BackendChoice choice, int32_t device);

}  // namespace gimbal
