// The one place where a C++ failure becomes a JS value. The TypeScript side turns it into a GimbalError.
#pragma once

#include <napi.h>

#include <exception>

namespace gimbal::addon {

// { code, message, field?, expected?, received? }; code is one of lib/errors.ts, or "GIMBAL_CANCELLED".
Napi::Value failure_to_js(Napi::Env env, const std::exception_ptr& failure);

}  // namespace gimbal::addon
