# Compiles the two consumers with nothing but a compiler and pkg-config, and the C one against the static archive too.
# Called with -DPKG_CONFIG -DPREFIX -DLIBDIR -DC_COMPILER -DCXX_COMPILER -DC_FLAGS -DCXX_FLAGS -DSOURCES -DWORK.
cmake_minimum_required(VERSION 3.22)
set(ENV{PKG_CONFIG_PATH} ${PREFIX}/${LIBDIR}/pkgconfig)
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
separate_arguments(C_FLAGS NATIVE_COMMAND "${C_FLAGS}")
separate_arguments(CXX_FLAGS NATIVE_COMMAND "${CXX_FLAGS}")

# build_and_run(NAME PKG_CONFIG_OPTIONS COMPILE_COMMAND...)
function(build_and_run name options)
  execute_process(COMMAND ${PKG_CONFIG} --cflags ${options} --libs xent
    OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags NATIVE_COMMAND "${flags}")
  execute_process(COMMAND ${ARGN} ${flags} -o ${WORK}/${name} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${WORK}/${name} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(warnings -Wall -Wextra -Wpedantic -Werror)
set(rpath -Wl,-rpath,${PREFIX}/${LIBDIR})
build_and_run(consumer_c "" ${C_COMPILER} -std=c11 ${warnings} ${C_FLAGS} ${SOURCES}/c/main.c ${rpath})
build_and_run(consumer_cpp "" ${CXX_COMPILER} -std=c++20 ${warnings} ${CXX_FLAGS} ${SOURCES}/cpp/main.cpp ${rpath})
# A program that is static throughout; sanitizers do not come so.
if(EXISTS ${PREFIX}/${LIBDIR}/libxent.a AND NOT "${C_FLAGS}" MATCHES "-fsanitize")
  build_and_run(consumer_static --static ${C_COMPILER} -std=c11 -static ${SOURCES}/c/main.c)
endif()
