// main of the API tests. With --report it prints what the library chose in this process, for the tests that start this
// program anew under another environment; otherwise it runs the tests.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>

#include "xent/xent.h"

int main(int argc, char **argv) {
  if (argc == 2 && std::strcmp(argv[1], "--report") == 0) {
    const char *unknown = xent_unknown_max_target();
    std::printf("%s\n%s\n%d\n", xent_active_target(), unknown == nullptr ? "(understood)" : unknown,
                static_cast<int>(xent_default_threads()));
    return 0;
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
