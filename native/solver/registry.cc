#include "registry.h"

#include "../model/errors.h"

namespace gimbal {
namespace {

constexpr const char* kNoCuda = "this build has no CUDA backend";

}  // namespace

std::vector<BackendInfo> list_backends() {
  Backend& cpu = cpu_backend();
  return {
      {"cpu", true, "CPU, " + cpu.detail() + " vectors", ""},
      {"cuda", false, "NVIDIA GPU", kNoCuda},
  };
}

Backend& select_backend(BackendChoice choice) {
  if (choice == BackendChoice::kCuda) {
    throw Error(ErrorCode::kBackendUnavailable, "backend", "an available backend", std::string("cuda: ") + kNoCuda);
  }
  return cpu_backend();
}

}  // namespace gimbal
