# All that node-gyp needs to know of a Node whose own headers are not installed: the addon takes its headers from the
# node-api-headers package, so nothing has to be downloaded. scripts/install.cjs passes this folder as --nodedir.
{
  "variables": {
    "visibility%": "hidden",
    "library%": "static_library"
  },
  "target_defaults": {
    "default_configuration": "Release",
    "configurations": {
      "Release": {},
      "Debug": {}
    },
    "conditions": [
      ["OS!='mac' and OS!='win'", {
        "cflags": ["-fPIC", "-pthread"],
        "ldflags": ["-pthread"]
      }]
    ]
  }
}
