// The runtime API is part of the stand-in for cuda_runtime.h.
#pragma once

#include "cuda_runtime.h"
