# A plug-in that holds the archive exports its own function, and none of xent's or Highway's.
# Called with -DNM -DPLUGIN.
cmake_minimum_required(VERSION 3.22)
execute_process(COMMAND ${NM} --dynamic --defined-only --format=posix ${PLUGIN}
  OUTPUT_VARIABLE exported COMMAND_ERROR_IS_FATAL ANY)
if(NOT exported MATCHES "(^|\n)plugin_loss T ")
  message(FATAL_ERROR "${PLUGIN} does not export plugin_loss:\n${exported}")
endif()
string(REGEX MATCHALL "[^\n]*(xent|hwy)[^\n]*" leaked "${exported}")
if(leaked)
  message(FATAL_ERROR "${PLUGIN} exports what belongs to the archive: ${leaked}")
endif()
