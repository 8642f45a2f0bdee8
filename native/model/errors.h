// The errors a caller can cause. Broken invariants are not here: they assert.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace gimbal {

enum class ErrorCode {
  kInvalidInput,
  kInfeasible,
  kOutOfRange,
  kBackendUnavailable,
  kBackendFailed,  // a device or its driver refused
  kDeviceMemory,   // as above; a smaller batch may do
  kCancelled,
  kInternal,
};

// Names the field at fault, what was expected and what came, so that the binding can build a typed JS error.
class Error : public std::exception {
 public:
  Error(ErrorCode code, std::string field, std::string expected, std::string received)
      : code_(code), field_(std::move(field)), expected_(std::move(expected)), received_(std::move(received)) {
    message_ = field_ + ": expected " + expected_ + " but received " + received_;
  }
  const char* what() const noexcept override { return message_.c_str(); }
  ErrorCode code() const { return code_; }
  const std::string& field() const { return field_; }
  const std::string& expected() const { return expected_; }
  const std::string& received() const { return received_; }

 private:
  ErrorCode code_;
  std::string field_;
  std::string expected_;
  std::string received_;
  std::string message_;
};

}  // namespace gimbal
