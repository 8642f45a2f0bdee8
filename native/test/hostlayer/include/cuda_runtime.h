// Stands in for NVIDIA's header of this name: CUDA sources, kernels and host code alike, compile with a plain C++17
// compiler and run on the CPU. Device code is in hostlayer_device.h, the runtime API in hostlayer_api.h.
#pragma once

#include "hostlayer_api.h"
#include "hostlayer_device.h"
