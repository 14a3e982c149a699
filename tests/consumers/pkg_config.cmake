# Compiles the two consumers with nothing but a compiler and pkg-config, and the C one against the static archive too.
# XENT_STATIC is defined for the archive and only there.
# Called with -DPKG_CONFIG -DPREFIX -DLIBDIR -DC_COMPILER -DCXX_COMPILER -DC_FLAGS -DCXX_FLAGS -DSOURCES -DWORK.
cmake_minimum_required(VERSION 3.22)
set(ENV{PKG_CONFIG_PATH} ${PREFIX}/${LIBDIR}/pkgconfig)
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
separate_arguments(C_FLAGS NATIVE_COMMAND "${C_FLAGS}")
separate_arguments(CXX_FLAGS NATIVE_COMMAND "${CXX_FLAGS}")

# build_and_run(NAME PKG_CONFIG_OPTIONS IS_STATIC COMPILE_COMMAND...)
function(build_and_run name options is_static)
  execute_process(COMMAND ${PKG_CONFIG} --cflags ${options} --libs xent
    OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags NATIVE_COMMAND "${flags}")
  if(is_static AND NOT "-DXENT_STATIC" IN_LIST flags)
    message(FATAL_ERROR "the flags for the archive do not define XENT_STATIC: ${flags}")
  elseif(NOT is_static AND "-DXENT_STATIC" IN_LIST flags)
    message(FATAL_ERROR "the flags for the shared library define XENT_STATIC: ${flags}")
  endif()
  execute_process(COMMAND ${ARGN} ${flags} -o ${WORK}/${name} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${WORK}/${name} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(warnings -Wall -Wextra -Wpedantic -Werror)
set(rpath -Wl,-rpath,${PREFIX}/${LIBDIR})
set(lib_is_static TRUE)
if(EXISTS ${PREFIX}/${LIBDIR}/libxent.so)
  set(lib_is_static FALSE)
endif()
build_and_run(consumer_c "" ${lib_is_static}
  ${C_COMPILER} -std=c11 ${warnings} ${C_FLAGS} ${SOURCES}/c/main.c ${rpath})
build_and_run(consumer_cpp "" ${lib_is_static}
  ${CXX_COMPILER} -std=c++20 ${warnings} ${CXX_FLAGS} ${SOURCES}/cpp/main.cpp ${rpath})
# A program that is static throughout; sanitizers do not come so.
if(EXISTS ${PREFIX}/${LIBDIR}/libxent.a AND NOT "${C_FLAGS}" MATCHES "-fsanitize")
  build_and_run(consumer_static --static TRUE ${C_COMPILER} -std=c11 -static ${SOURCES}/c/main.c)
endif()
