// The one place where a C++ failure becomes a JS value.
#include "errors.h"

#include <new>

#include "../model/errors.h"

namespace gimbal::addon {
namespace {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidInput: return "GIMBAL_INVALID_INPUT";
    case ErrorCode::kInfeasible: return "GIMBAL_INFEASIBLE";
    case ErrorCode::kOutOfRange: return "GIMBAL_OUT_OF_RANGE";
    case ErrorCode::kBackendUnavailable: return "GIMBAL_BACKEND_UNAVAILABLE";
    case ErrorCode::kBackendFailed:
    case ErrorCode::kDeviceMemory: return "GIMBAL_BACKEND_FAILED";
    case ErrorCode::kCancelled: return "GIMBAL_CANCELLED";
    case ErrorCode::kInternal: return "GIMBAL_INTERNAL";
  }
  return "GIMBAL_INTERNAL";
}

Napi::Object describe(Napi::Env env, const char* code, const char* message) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("code", code);
  object.Set("message", message);
  return object;
}

}  // namespace

Napi::Value failure_to_js(Napi::Env env, const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    Napi::Object object = describe(env, code_name(error.code()), error.what());
    object.Set("field", error.field());
    object.Set("expected", error.expected());
    object.Set("received", error.received());
    return object;
  } catch (const std::bad_alloc&) {
    return describe(env, "GIMBAL_OUT_OF_RANGE", "memory: expected enough for this problem but received an allocation failure");
  } catch (const std::exception& error) {
    return describe(env, "GIMBAL_INTERNAL", error.what());
  } catch (...) {
    return describe(env, "GIMBAL_INTERNAL", "an unknown C++ exception");
  }
}

}  // namespace gimbal::addon
