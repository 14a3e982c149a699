// main of the API tests. With the name of a part (own_process.h) it runs that alone; otherwise it runs the tests.
#include <gtest/gtest.h>

#include "api/own_process.h"

int main(int argc, char **argv) {
  int status = 0;
  if (argc == 2 && xent::test::RunPart(argv[1], &status)) return status;
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
