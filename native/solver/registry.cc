#include "registry.h"

#include "../model/errors.h"
#include "cuda/backend_cuda.h"

namespace gimbal {

std::vector<BackendInfo> list_backends() {
  std::vector<BackendInfo> infos = {{"cpu", true, "CPU, " + cpu_backend().detail() + " vectors", "", {}}};
  BackendInfo cuda{"cuda", false, "NVIDIA GPU", "", {}};
  if (Backend* const backend = cuda_backend(0, &cuda.reason)) {
    cuda.available = true;
    cuda.description = backend->detail();
    cuda.devices = cuda_devices();
  }
  infos.push_back(cuda);
  return infos;
}

Selection select_backend(BackendChoice choice, int32_t device) {
  if (choice == BackendChoice::kCpu) return {cpu_backend(), ""};
  std::string reason;
  Backend* const cuda = cuda_backend(device, &reason);
  if (cuda != nullptr) return {*cuda, ""};
  if (choice == BackendChoice::kCuda) {
    throw Error(ErrorCode::kBackendUnavailable, "backend", "an available backend", "cuda: " + reason);
  }
  return {cpu_backend(), "cuda: " + reason};
}

}  // namespace gimbal
