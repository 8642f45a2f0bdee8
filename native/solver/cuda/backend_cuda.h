// The CUDA backend: the plug-in's engines behind the interface that the solver knows.
#pragma once

#include <string>
#include <vector>

#include "../../model/backends.h"
#include "../backend.h"

namespace gimbal {

// The backend of one device. Null where it cannot be used; `reason` says why.
Backend* cuda_backend(int32_t device, std::string* reason);

// All devices by number, those that are lost included; none where there is no driver.
std::vector<DeviceInfo> cuda_devices();

}  // namespace gimbal
