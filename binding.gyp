# The CPU addon, for node-gyp. Its twin is CMakeLists.txt; both take the sources from native/sources.json.
{
  "targets": [
    {
      "target_name": "gimbal",
      "sources": [
        "<!@(node -p \"const list = require('./native/sources.json'); [...list.core, ...list.addon].join(' ')\")"
      ],
      "dependencies": [
        "<!(node -p \"require('node-addon-api').targets\"):node_addon_api_except"
      ],
      # The same Node-API headers as the CMake build, whatever Node runs.
      "include_dirs": ["<!(node -p \"require('node-api-headers').include_dir\")"],
      "defines": [
        "NAPI_VERSION=8",
        # worker.terminate() may leave an environment that cannot throw any more.
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"
      ],
      "cflags_cc!": ["-std=gnu++17", "-std=gnu++20", "-fno-rtti", "-fno-exceptions"],
      # No contraction: rounding must not depend on the compiler having fused multiply-add.
      "cflags_cc": ["-std=c++20", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off"],
      "xcode_settings": {
        "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
        "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
        "GCC_ENABLE_CPP_RTTI": "YES",
        "GCC_SYMBOLS_PRIVATE_EXTERN": "YES",
        "GCC_OPTIMIZATION_LEVEL": "3",
        "MACOSX_DEPLOYMENT_TARGET": "11.0",
        "OTHER_CPLUSPLUSFLAGS": ["-Wall", "-Wextra", "-ffp-contract=off"]
      },
      "msvs_settings": {
        "VCCLCompilerTool": {
          "AdditionalOptions": ["/std:c++20", "/EHsc", "/fp:precise"],
          "RuntimeTypeInfo": "true"
        }
      }
    }
  ]
}
