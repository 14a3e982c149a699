// Macros that say to the compiler and the preprocessor what the language has no words for. The sources are written for
// GCC and Clang.
#pragma once

#define XENT_NOINLINE __attribute__((noinline))
// Behind the parameters of a lambda that a loop over vectors is handed: its body is compiled into the loop.
#define XENT_INLINE_LAMBDA __attribute__((always_inline))

// The value of a macro as a string literal.
#define XENT_STRINGIFY(x) XENT_STRINGIFY_TOKENS(x)
#define XENT_STRINGIFY_TOKENS(x) #x
