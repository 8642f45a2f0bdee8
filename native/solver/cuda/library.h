// The CUDA plug-in as the addon sees it: a library beside the addon, opened when a GPU is first asked for.
#pragma once

#include <string>
#include <vector>

#include "plugin.h"

namespace gimbal {
namespace cuda {

struct Library {
  const PluginApi* api = nullptr;  // null: there is none, and `reason` says why
  std::string reason;
};

// Opened once for the process. GIMBAL_CUDA_PLUGIN names another file than the one beside the addon.
const Library& library();

// The devices that can be used, or an empty list and why there is none. Asked anew each time, since a GPU may come and go.
std::vector<PluginDevice> list_devices(std::string* reason);

// "cudaMalloc failed: cudaErrorMemoryAllocation (out of memory)"
std::string describe(const PluginStatus& status);

}  // namespace cuda
}  // namespace gimbal
