#include "library.h"

#include <cstdlib>

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace gimbal {
namespace cuda {
namespace {

#if defined(_WIN32)
constexpr const char* kFileName = "gimbal_cuda.dll";

std::string own_folder() {
  HMODULE module = nullptr;
  char path[MAX_PATH] = "";
  GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                     reinterpret_cast<LPCSTR>(&own_folder), &module);
  GetModuleFileNameA(module, path, MAX_PATH);
  return path;
}

void* open_file(const std::string& path, std::string* reason) {
  HMODULE module = LoadLibraryA(path.c_str());
  if (module == nullptr) *reason = path + ": error " + std::to_string(GetLastError());
  return reinterpret_cast<void*>(module);
}

void* find_symbol(void* module, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(reinterpret_cast<HMODULE>(module), name));
}
#else
constexpr const char* kFileName = "gimbal_cuda.so";

std::string own_folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return "";
  return info.dli_fname;
}

void* open_file(const std::string& path, std::string* reason) {
  void* const module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    const char* const error = dlerror();
    *reason = error != nullptr ? error : path + " cannot be opened";
  }
  return module;
}

void* find_symbol(void* module, const char* name) { return dlsym(module, name); }
#endif

std::string default_path() {
  const std::string own = own_folder();
  const size_t slash = own.find_last_of("/\\");
  return (slash == std::string::npos ? std::string() : own.substr(0, slash + 1)) + kFileName;
}

Library open_library() {
  Library library;
  const char* const named = std::getenv("GIMBAL_CUDA_PLUGIN");
  const std::string path = named != nullptr && *named != '\0' ? named : default_path();
  std::string error;
  void* const module = open_file(path, &error);
  if (module == nullptr) {
    library.reason = "no CUDA plug-in could be loaded (" + error + ")";
    return library;
  }
  const PluginEntry entry = reinterpret_cast<PluginEntry>(find_symbol(module, kPluginEntry));
  if (entry == nullptr) {
    library.reason = path + " is not a CUDA plug-in of this package";
    return library;
  }
  const PluginApi* const api = entry();
  if (api->version != kPluginVersion) {
    library.reason = path + " is a plug-in of version " + std::to_string(api->version) + ", this addon wants version " +
                     std::to_string(kPluginVersion);
    return library;
  }
  library.api = api;
  return library;
}

}  // namespace

const Library& library() {
  static const Library opened = open_library();  // never closed: a GPU's driver does not like to be unloaded
  return opened;
}

std::vector<PluginDevice> list_devices(std::string* reason) {
  if (library().api == nullptr) {
    *reason = library().reason;
    return {};
  }
  constexpr int32_t kMostDevices = 64;
  std::vector<PluginDevice> devices(kMostDevices);
  PluginStatus status;
  int32_t count = 0;
  if (library().api->devices(devices.data(), kMostDevices, &count, &status) != 0) {
    *reason = describe(status);
    return {};
  }
  if (count == 0) *reason = "no CUDA device was found";
  devices.resize(static_cast<size_t>(count < kMostDevices ? count : kMostDevices));
  return devices;
}

std::string describe(const PluginStatus& status) {
  if (status.call[0] == '\0') return status.text;
  return std::string(status.call) + " failed: " + status.name + " (" + status.text + ")";
}

}  // namespace cuda
}  // namespace gimbal
