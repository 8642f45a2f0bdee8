// Memory and errors of the CUDA runtime: buffers that grow and are kept, and one exception for what fails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>

#include "plugin.h"
#include "runtime.h"

namespace gimbal {
namespace cuda {

// Stays inside the plug-in.
class CudaError : public std::exception {
 public:
  CudaError(const char* call, cudaError_t error, const char* detail = nullptr) {
    status_.error = static_cast<int32_t>(error);
    status_.out_of_memory = error == cudaErrorMemoryAllocation ? 1 : 0;
    status_.device_lost = is_sticky(error) ? 1 : 0;
    copy(status_.call, sizeof(status_.call), call);
    copy(status_.name, sizeof(status_.name), cudaGetErrorName(error));
    copy(status_.text, sizeof(status_.text), detail != nullptr ? detail : cudaGetErrorString(error));
  }
  const char* what() const noexcept override { return status_.text; }
  const PluginStatus& status() const { return status_; }

 private:
  // After one of these every call of the process fails until it ends. Numbers stand for names that older toolkits lack.
  static bool is_sticky(cudaError_t error) {
    constexpr int kNvlinkUncorrectable = 220, kContained = 226, kTensorMemoryLeak = 721, kExternalDevice = 911;
    switch (static_cast<int>(error)) {
      case kNvlinkUncorrectable:
      case kContained:
      case kTensorMemoryLeak:
      case kExternalDevice:
      case cudaErrorECCUncorrectable:
      case cudaErrorIllegalAddress:
      case cudaErrorLaunchTimeout:
      case cudaErrorAssert:
      case cudaErrorHardwareStackError:
      case cudaErrorIllegalInstruction:
      case cudaErrorMisalignedAddress:
      case cudaErrorInvalidAddressSpace:
      case cudaErrorInvalidPc:
      case cudaErrorLaunchFailure:
      case cudaErrorUnknown:
        return true;
      default:
        return false;
    }
  }
  static void copy(char* to, size_t size, const char* from) {
    std::strncpy(to, from, size - 1);
    to[size - 1] = '\0';
  }
  PluginStatus status_;
};

inline void check(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky is reported once
  throw CudaError(call, error);
}

class Stream {
 public:
  Stream() = default;
  ~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t open() {
    check("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    return stream_;
  }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() = default;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void open(unsigned flags) { check("cudaEventCreateWithFlags", cudaEventCreateWithFlags(&event_, flags)); }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Grow-only memory of the device. Growing loses what was in it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer() { release(); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  char* reserve(size_t bytes) {
    if (bytes <= bytes_) return data_;
    release();
    void* data = nullptr;
    check("cudaMalloc", cudaMalloc(&data, bytes));
    data_ = static_cast<char*>(data);
    bytes_ = bytes;
    return data_;
  }
  char* data() const { return data_; }

 private:
  void release() {
    if (data_ != nullptr) cudaFree(data_);
    data_ = nullptr;
    bytes_ = 0;
  }
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

// Grow-only memory of the host that the device can copy from and to while the host goes on.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  ~PinnedBuffer() { release(); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  char* reserve(size_t bytes) {
    if (bytes <= bytes_) return data_;
    release();
    void* data = nullptr;
    check("cudaHostAlloc", cudaHostAlloc(&data, bytes, cudaHostAllocDefault));
    data_ = static_cast<char*>(data);
    bytes_ = bytes;
    return data_;
  }
  char* data() const { return data_; }

 private:
  void release() {
    if (data_ != nullptr) cudaFreeHost(data_);
    data_ = nullptr;
    bytes_ = 0;
  }
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace cuda
}  // namespace gimbal
