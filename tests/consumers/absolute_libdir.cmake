# Builds and installs xent with an absolute CMAKE_INSTALL_LIBDIR outside of the prefix, as Nix and Guix do. xent.pc must
# name the directories as they are, wherever the file itself lies; the installed program must find the library; and a
# program that is compiled with what pkg-config says must run. One SIMD target, without optimisation, is enough for it.
# Called with -DPKG_CONFIG -DSOURCE -DWORK -DGENERATOR -DMAKE_PROGRAM -DC_COMPILER -DCXX_COMPILER -DCLI -DOPTIONS.
cmake_minimum_required(VERSION 3.22)
file(REMOVE_RECURSE ${WORK})
set(prefix ${WORK}/first)
set(libdir ${WORK}/second/lib)
execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/build -G ${GENERATOR}
  -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -DCMAKE_C_COMPILER=${C_COMPILER} -DCMAKE_CXX_COMPILER=${CXX_COMPILER}
  -DCMAKE_BUILD_TYPE=None "-DCMAKE_CXX_FLAGS=-O0 -DHWY_COMPILE_ONLY_STATIC" -DXENT_BUILD_STATIC=OFF
  -DCMAKE_INSTALL_PREFIX=${prefix} -DCMAKE_INSTALL_LIBDIR=${libdir} -DXENT_BUILD_CLI=${CLI}
  -DXENT_BUILD_EXAMPLES=OFF -DXENT_BUILD_TESTS=OFF -DXENT_BUILD_BENCH=OFF ${OPTIONS}
  OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${WORK}/build OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE_RECURSE ${WORK}/build)  # nothing may be found there

if(CLI)
  execute_process(COMMAND ${prefix}/bin/xent --version COMMAND_ERROR_IS_FATAL ANY)
endif()

set(ENV{PKG_CONFIG_PATH} ${libdir}/pkgconfig)
# pkg_config(VARIABLE OPTIONS...)
function(pkg_config variable)
  execute_process(COMMAND ${PKG_CONFIG} ${ARGN} xent
    OUTPUT_VARIABLE output OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(${variable} "${output}" PARENT_SCOPE)
endfunction()
foreach(pair libdir=${libdir} includedir=${prefix}/include)
  string(REGEX MATCH "^([^=]+)=(.*)$" unused ${pair})
  set(want ${CMAKE_MATCH_2})
  pkg_config(got --variable=${CMAKE_MATCH_1})
  if(NOT got STREQUAL want)
    message(SEND_ERROR "xent.pc has ${got}; expected ${pair}")
  endif()
endforeach()
pkg_config(flags --cflags --libs)
separate_arguments(flags NATIVE_COMMAND "${flags}")
execute_process(COMMAND ${C_COMPILER} -std=c11 ${SOURCE}/tests/consumers/c/main.c ${flags} -Wl,-rpath,${libdir}
  -o ${WORK}/consumer COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${WORK}/consumer COMMAND_ERROR_IS_FATAL ANY)
