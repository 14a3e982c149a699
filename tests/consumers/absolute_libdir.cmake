# Configures xent with an absolute CMAKE_INSTALL_LIBDIR. xent.pc must name the directories as they are, wherever the
# file itself lies.
# Called with -DPKG_CONFIG -DSOURCE -DWORK -DGENERATOR -DMAKE_PROGRAM -DC_COMPILER -DCXX_COMPILER -DOPTIONS.
cmake_minimum_required(VERSION 3.22)
file(REMOVE_RECURSE ${WORK})
execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK} -G ${GENERATOR} -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}
  -DCMAKE_C_COMPILER=${C_COMPILER} -DCMAKE_CXX_COMPILER=${CXX_COMPILER} -DCMAKE_INSTALL_PREFIX=/opt/first
  -DCMAKE_INSTALL_LIBDIR=/opt/second/lib -DXENT_BUILD_CLI=OFF -DXENT_BUILD_EXAMPLES=OFF -DXENT_BUILD_TESTS=OFF
  -DXENT_BUILD_BENCH=OFF ${OPTIONS}
  OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
set(ENV{PKG_CONFIG_PATH} ${WORK}/package)
# check(VARIABLE WANT)
function(check variable want)
  execute_process(COMMAND ${PKG_CONFIG} --variable=${variable} xent
    OUTPUT_VARIABLE got OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT got STREQUAL want)
    message(SEND_ERROR "xent.pc has ${variable} ${got}; expected ${want}")
  endif()
endfunction()
check(libdir /opt/second/lib)
check(includedir /opt/first/include)
