// main of every test program that uses the library's internals: GoogleTest's own, and the summary of targets and errors
// at the end.
#include <gtest/gtest.h>

#include "testing/target.h"

int main(int argc, char **argv) {
  ::testing::InitGoogleTest(&argc, argv);
  // GoogleTest takes ownership.
  ::testing::UnitTest::GetInstance()->listeners().Append(new xent::test::Summary);
  return RUN_ALL_TESTS();
}
