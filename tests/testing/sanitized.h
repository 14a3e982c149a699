// XENT_TEST_SANITIZED: the tests are compiled with a sanitizer, which takes the heap, the stack and the address space
// into its own hands.
#ifndef XENT_TESTS_TESTING_SANITIZED_H_
#define XENT_TESTS_TESTING_SANITIZED_H_

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define XENT_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define XENT_TEST_SANITIZED 1
#endif
#endif

#endif  // XENT_TESTS_TESTING_SANITIZED_H_
