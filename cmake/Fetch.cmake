# xent_fetch(NAME URL SHA256 OFF...): unpacks a pinned release and adds its targets, of which only those are built that
# something here links, and none is installed. OFF names options of that project which are switched off for it alone.
include(FetchContent)

function(xent_fetch name url sha256)
  # SOURCE_SUBDIR names a directory that does not exist: MakeAvailable then only unpacks, and add_subdirectory can say
  # EXCLUDE_FROM_ALL, which FetchContent itself learnt in CMake 3.28.
  FetchContent_Declare(${name} URL ${url} URL_HASH SHA256=${sha256} SOURCE_SUBDIR unpack-only)
  FetchContent_MakeAvailable(${name})
  # The defaults of option() and set(... CACHE) yield to variables set here.
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  set(CMAKE_POLICY_DEFAULT_CMP0126 NEW)
  set(BUILD_SHARED_LIBS OFF)
  set(BUILD_TESTING OFF)
  set(CMAKE_POSITION_INDEPENDENT_CODE ON)
  foreach(option IN LISTS ARGN)
    set(${option} OFF)
  endforeach()
  add_subdirectory(${${name}_SOURCE_DIR} ${${name}_BINARY_DIR} EXCLUDE_FROM_ALL)
endfunction()

# xent_headers_are_system(TARGET): the target's headers are not held to xent's warnings.
function(xent_headers_are_system target)
  get_target_property(includes ${target} INTERFACE_INCLUDE_DIRECTORIES)
  set_target_properties(${target} PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${includes}")
endfunction()
