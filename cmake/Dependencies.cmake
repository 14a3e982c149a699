# What the program, the tests and the benchmarks need of the system. Each function finds one package for the directory
# that calls it, or stops and names what to install. Nothing is downloaded here. Highway has a file of its own.

# xent_missing(NEED SETUP PACKAGE OPTION): stops the configuration with a sentence that begins with NEED. The script
# SETUP installs what is missing, PACKAGE is its name in Debian and Ubuntu, and OPTION switches off what needs it.
function(xent_missing need setup package option)
  message(FATAL_ERROR "xent: ${need}, which is not installed. \"${setup}\" installs it (Debian, Ubuntu: ${package}); "
                      "-D${option}=OFF builds without.")
endfunction()

# The target CLI11::CLI11.
function(xent_need_cli11)
  find_package(CLI11 QUIET)
  if(NOT TARGET CLI11::CLI11)
    xent_missing("the command line needs CLI11" scripts/setup.sh libcli11-dev XENT_BUILD_CLI)
  endif()
endfunction()

# The targets GTest::gtest and GTest::gtest_main.
function(xent_need_googletest)
  find_package(GTest QUIET)
  if(NOT TARGET GTest::gtest)
    xent_missing("the tests need GoogleTest" "scripts/setup.sh --test" libgtest-dev XENT_BUILD_TESTS)
  endif()
endfunction()

# The target benchmark::benchmark.
function(xent_need_benchmark)
  find_package(benchmark QUIET)
  if(NOT TARGET benchmark::benchmark)
    xent_missing("the benchmarks need Google Benchmark" "scripts/setup.sh --test" libbenchmark-dev XENT_BUILD_BENCH)
  endif()
endfunction()

# The target xent_mpfr: MPFR and GMP.
function(xent_need_mpfr)
  find_path(XENT_MPFR_INCLUDE_DIR mpfr.h)
  find_library(XENT_MPFR_LIBRARY mpfr)
  find_library(XENT_GMP_LIBRARY gmp)
  if(NOT XENT_MPFR_INCLUDE_DIR OR NOT XENT_MPFR_LIBRARY OR NOT XENT_GMP_LIBRARY)
    xent_missing("the tests need MPFR with GMP" "scripts/setup.sh --test" libmpfr-dev XENT_BUILD_TESTS)
  endif()
  add_library(xent_mpfr INTERFACE)
  target_include_directories(xent_mpfr SYSTEM INTERFACE ${XENT_MPFR_INCLUDE_DIR})
  target_link_libraries(xent_mpfr INTERFACE ${XENT_MPFR_LIBRARY} ${XENT_GMP_LIBRARY})
endfunction()
