// main of the API tests. With the name of a part (own_process.h) it runs that alone; otherwise it runs the tests.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>

#include "api/own_process.h"

int main(int argc, char **argv) {
  int status = 0;
  if (argc == 2 && xent::test::RunPart(argv[1], &status)) {
    std::fflush(nullptr);
    _exit(status);  // a sanitizer's search for leaks takes threads, which a part may have to do without
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
