# XENT_WARNINGS: the warnings that xent's own sources are held to by g++ and clang++.
set(XENT_WARNINGS -Wall -Wextra -Wpedantic)

# xent_warnings(TARGET): compiles TARGET with them. They are PRIVATE, so that no consumer inherits them. With
# XENT_WERROR they are errors for g++ 12 and clang 19, which the sources are checked with; another compiler may know
# new ones.
function(xent_warnings target)
  if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    target_compile_options(${target} PRIVATE ${XENT_WARNINGS})
    if(XENT_WERROR AND "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}" MATCHES "^(GNU 12|Clang 19)\\.")
      target_compile_options(${target} PRIVATE -Werror)
    endif()
  endif()
endfunction()
