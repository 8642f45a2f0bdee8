// What can run a plan on this machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gimbal {

// One GPU.
struct DeviceInfo {
  std::string name;
  std::string compute_capability;  // e.g. "9.0"
  int32_t multiprocessors = 0;
  int64_t memory_bytes = 0;
  double clock_mhz = 0;
  double memory_clock_mhz = 0;
  int32_t memory_bus_bits = 0;
  std::string driver;   // the newest CUDA that the driver can serve, e.g. "13.0"
  std::string runtime;  // the CUDA that the plug-in was built with
};

struct BackendInfo {
  std::string name;  // "cpu" | "cuda"
  bool available = false;
  std::string description;
  std::string reason;  // why not, where not available
  std::vector<DeviceInfo> devices;  // by number; of cuda, where available
};

}  // namespace gimbal
