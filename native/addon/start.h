// How a call from JS becomes a job of its environment's runner.
#pragma once

#include <napi.h>

#include "../model/errors.h"
#include "errors.h"
#include "runner.h"

namespace gimbal::addon {

// Makes the job and starts it; a mistake in the arguments is thrown to JS in the form of a failed job.
template <typename MakeJob>
Napi::Value start_job(Napi::Env env, MakeJob make_job) {
  try {
    return runner_of(env)->start(env, make_job());
  } catch (const Error&) {
    throw Napi::Error(env, failure_to_js(env, std::current_exception()));
  }
}

}  // namespace gimbal::addon
