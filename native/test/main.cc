// The entry point of the native tests; every other file here holds the cases of one part of the core.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
