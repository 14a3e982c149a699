# From objects to libraries.

# xent_object_library(TARGET SOURCE...): objects that fit a shared library and hide what is not exported.
function(xent_object_library target)
  add_library(${target} OBJECT ${ARGN})
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    CXX_EXTENSIONS OFF)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(${target} PUBLIC hwy)
  xent_warnings(${target})
  if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    # Without -ffp-contract=off the compiler fuses mul and add where it likes and results differ between targets.
    # Functions begin at half cache lines: else a change to one moves all others, and short rows take up to 4 % longer
    # or less.
    target_compile_options(${target} PRIVATE -ffp-contract=off -fno-math-errno -falign-functions=32)
  endif()
endfunction()

# xent_make_library(TARGET KIND): a library of xent's objects and of what they use of Highway; it needs no libhwy.
function(xent_make_library target kind)
  set(objects $<TARGET_OBJECTS:xent_objects>)
  if(kind STREQUAL STATIC)
    set(objects $<FILTER:${objects},EXCLUDE,/api/[^/]*$> $<TARGET_OBJECTS:xent_static_api>)
  endif()
  if(kind STREQUAL SHARED OR XENT_SYSTEM_HIGHWAY)
    add_library(${target} ${kind} ${objects})
    if(XENT_SYSTEM_HIGHWAY)
      target_link_libraries(${target} PRIVATE hwy::hwy)
    else()
      target_link_libraries(${target} PRIVATE hwy)
    endif()
  elseif(CMAKE_OBJCOPY AND CMAKE_SYSTEM_NAME STREQUAL Linux AND NOT "${CMAKE_CXX_FLAGS}" MATCHES "-flto")
    # Another Highway, of another version, may be part of the program that links the archive, and its symbols have the
    # same names. So the archive holds one object, in which all that is hidden has become local, but for the border.
    add_custom_command(OUTPUT xent_whole.o
      COMMAND ${CMAKE_LINKER} -r -o xent_whole.o ${objects} $<TARGET_FILE:hwy>
      COMMAND ${CMAKE_OBJCOPY} --localize-hidden xent_whole.o
      COMMAND ${CMAKE_OBJCOPY} --wildcard --globalize-symbol=xent_* "--globalize-symbol=!xent_*.*" xent_whole.o
      DEPENDS xent_objects xent_static_api hwy ${objects}
      COMMENT "Linking xent and Highway into one object"
      COMMAND_EXPAND_LISTS VERBATIM)
    # The source defines nothing; by it CMake knows that who links the archive links C++.
    file(CONFIGURE OUTPUT xent_whole.cc CONTENT "// See cmake/Library.cmake.\n")
    add_library(${target} STATIC ${CMAKE_CURRENT_BINARY_DIR}/xent_whole.o ${CMAKE_CURRENT_BINARY_DIR}/xent_whole.cc)
    set_source_files_properties(${CMAKE_CURRENT_BINARY_DIR}/xent_whole.o PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  else()
    add_library(${target} STATIC ${objects} $<TARGET_OBJECTS:hwy>)
    add_dependencies(${target} hwy)
  endif()
  target_link_libraries(${target} PRIVATE ${xent_openmp})
  if(XENT_OPENMP AND CMAKE_SYSTEM_NAME STREQUAL Linux)
    # The threads of the OpenMP runtime wait in its code for the next call. Unloading the library, or a plug-in that
    # holds the archive, would unload the runtime from under them.
    if(kind STREQUAL SHARED)
      target_link_options(${target} PRIVATE LINKER:-z,nodelete)
    else()
      target_link_options(${target} INTERFACE
        $<$<IN_LIST:$<TARGET_PROPERTY:TYPE>,SHARED_LIBRARY$<SEMICOLON>MODULE_LIBRARY>:LINKER:-z,nodelete>)
    endif()
  endif()
  if(kind STREQUAL STATIC)
    target_compile_definitions(${target} INTERFACE XENT_STATIC=1)
  endif()
  target_include_directories(${target} INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  set_target_properties(${target} PROPERTIES
    LINKER_LANGUAGE CXX
    OUTPUT_NAME xent
    LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib
    ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
endfunction()
