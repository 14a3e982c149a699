# What the program, the tests and the benchmarks use: the system's package where there is one, else a pinned release.
# Each function brings one of them; the enclosing directory calls it. Highway has a file of its own.
include(${CMAKE_CURRENT_LIST_DIR}/Fetch.cmake)

# The target CLI11::CLI11.
function(xent_need_cli11)
  find_package(CLI11 QUIET)
  if(NOT TARGET CLI11::CLI11)
    message(STATUS "xent: no CLI11 on this system (Debian, Ubuntu: libcli11-dev), downloading 2.4.2")
    xent_fetch(xent_cli11 https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.4.2.tar.gz
      f2d893a65c3b1324c50d4e682c0cdc021dd0477ae2c048544f39eed6654b699a
      CLI11_BUILD_TESTS CLI11_BUILD_EXAMPLES CLI11_BUILD_DOCS CLI11_INSTALL)
    xent_headers_are_system(CLI11)
  endif()
endfunction()

# The targets GTest::gtest and GTest::gtest_main.
function(xent_need_googletest)
  find_package(GTest QUIET)
  if(NOT TARGET GTest::gtest)
    message(STATUS "xent: no GoogleTest on this system (Debian, Ubuntu: libgtest-dev), downloading 1.12.1")
    xent_fetch(xent_googletest https://github.com/google/googletest/archive/refs/tags/release-1.12.1.tar.gz
      81964fe578e9bd7c94dfdb09c8e4d6e6759e19967e397dbea48d1c10e45d0df2 BUILD_GMOCK INSTALL_GTEST)
    xent_headers_are_system(gtest)
  endif()
endfunction()

# The target benchmark::benchmark.
function(xent_need_benchmark)
  find_package(benchmark QUIET)
  if(NOT TARGET benchmark::benchmark)
    message(STATUS "xent: no Google Benchmark on this system (Debian, Ubuntu: libbenchmark-dev), downloading 1.7.1")
    xent_fetch(xent_benchmark https://github.com/google/benchmark/archive/refs/tags/v1.7.1.tar.gz
      6430e4092653380d9dc4ccb45a1e2dc9259d581f4866dc0759713126056bc1d7
      BENCHMARK_ENABLE_TESTING BENCHMARK_ENABLE_GTEST_TESTS BENCHMARK_ENABLE_INSTALL BENCHMARK_ENABLE_WERROR)
    xent_headers_are_system(benchmark)
  endif()
endfunction()

# The target xent_mpfr: MPFR and GMP, which have no releases that CMake could build.
function(xent_need_mpfr)
  find_path(XENT_MPFR_INCLUDE_DIR mpfr.h)
  find_library(XENT_MPFR_LIBRARY mpfr)
  find_library(XENT_GMP_LIBRARY gmp)
  if(NOT XENT_MPFR_INCLUDE_DIR OR NOT XENT_MPFR_LIBRARY OR NOT XENT_GMP_LIBRARY)
    message(FATAL_ERROR "xent: the tests need MPFR and GMP (Debian, Ubuntu: libmpfr-dev); "
                        "-DXENT_BUILD_TESTS=OFF builds without them.")
  endif()
  add_library(xent_mpfr INTERFACE)
  target_include_directories(xent_mpfr SYSTEM INTERFACE ${XENT_MPFR_INCLUDE_DIR})
  target_link_libraries(xent_mpfr INTERFACE ${XENT_MPFR_LIBRARY} ${XENT_GMP_LIBRARY})
endfunction()
