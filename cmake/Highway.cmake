# Brings the target `hwy`: Highway's pinned release, built static, position-independent and hidden, or, with
# XENT_SYSTEM_HIGHWAY, whatever find_package finds. Distributions ship Highway shared and often too old, and two
# versions of it in one process must not see each other, hence the pinned build by default.
include(FetchContent)

set(XENT_HIGHWAY_VERSION 1.2.0)
set(XENT_HIGHWAY_SHA256 7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343)

if(XENT_SYSTEM_HIGHWAY)
  if(NOT TARGET hwy AND NOT TARGET hwy::hwy)
    find_package(hwy 1.2 REQUIRED)
  endif()
  if(NOT TARGET hwy)
    add_library(hwy INTERFACE IMPORTED)
    target_link_libraries(hwy INTERFACE hwy::hwy)
  elseif(NOT TARGET hwy::hwy)
    add_library(hwy::hwy ALIAS hwy)
  endif()
  return()
endif()
if(TARGET hwy)
  message(FATAL_ERROR "xent: this project already has a target hwy, and xent would build its own Highway "
                      "${XENT_HIGHWAY_VERSION}. Set XENT_SYSTEM_HIGHWAY=ON to let xent use yours (1.2.0 or newer).")
endif()

# xent_find_highway(VARIABLE): the archive's path. It is the file that the user names, else the one that
# scripts/setup.sh brought, else a download from upstream; the same bytes for all three (Debian's
# highway_1.2.0.orig.tar.gz is upstream's tarball).
function(xent_find_highway variable)
  set(name highway_${XENT_HIGHWAY_VERSION}.orig.tar.gz)
  set(archive ${PROJECT_SOURCE_DIR}/.cache/highway/${name})
  if(XENT_HIGHWAY_ARCHIVE)
    get_filename_component(archive "${XENT_HIGHWAY_ARCHIVE}" ABSOLUTE)
    if(NOT EXISTS "${archive}")
      message(FATAL_ERROR "xent: XENT_HIGHWAY_ARCHIVE is ${XENT_HIGHWAY_ARCHIVE}, which does not exist.")
    endif()
  elseif(NOT EXISTS ${archive})
    set(archive ${PROJECT_BINARY_DIR}/${name})
    set(url https://github.com/google/highway/archive/refs/tags/${XENT_HIGHWAY_VERSION}.tar.gz)
    set(hash)
    if(EXISTS ${archive})
      file(SHA256 ${archive} hash)
    endif()
    if(NOT hash STREQUAL XENT_HIGHWAY_SHA256)
      message(STATUS "xent: downloading Highway ${XENT_HIGHWAY_VERSION} from ${url}")
      file(DOWNLOAD ${url} ${archive} STATUS status INACTIVITY_TIMEOUT 30)
      list(POP_FRONT status code)
      if(code)
        file(REMOVE ${archive})
        message(FATAL_ERROR "xent: ${url} could not be downloaded (${status}). \"scripts/setup.sh\" brings Highway's "
                            "tarball into .cache/highway, -DXENT_HIGHWAY_ARCHIVE=FILE names one, and "
                            "-DXENT_SYSTEM_HIGHWAY=ON uses an installed Highway (1.2.0 or newer).")
      endif()
    endif()
  endif()
  set(${variable} ${archive} PARENT_SCOPE)
endfunction()

# Unpacks the archive and adds its targets. Only those are built that something here links, and none is installed.
function(xent_add_highway)
  # FETCHCONTENT_SOURCE_DIR_XENT_HIGHWAY, CMake's own variable, names a directory where Highway is unpacked already.
  set(archive "")
  if(NOT FETCHCONTENT_SOURCE_DIR_XENT_HIGHWAY)
    xent_find_highway(archive)
    message(STATUS "xent: Highway ${XENT_HIGHWAY_VERSION} from ${archive}")
  endif()
  # SOURCE_SUBDIR names a directory that does not exist: MakeAvailable then only unpacks, and add_subdirectory can say
  # EXCLUDE_FROM_ALL, which FetchContent itself learnt in CMake 3.28.
  FetchContent_Declare(xent_highway
    URL "${archive}" URL_HASH SHA256=${XENT_HIGHWAY_SHA256} SOURCE_SUBDIR unpack-only)
  FetchContent_MakeAvailable(xent_highway)
  # The defaults of option() and set(... CACHE) yield to variables set here.
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  set(CMAKE_POLICY_DEFAULT_CMP0126 NEW)
  set(CMAKE_POSITION_INDEPENDENT_CODE ON)
  foreach(option BUILD_SHARED_LIBS BUILD_TESTING
                 HWY_ENABLE_CONTRIB HWY_ENABLE_EXAMPLES HWY_ENABLE_TESTS HWY_ENABLE_INSTALL)
    set(${option} OFF)
  endforeach()
  add_subdirectory(${xent_highway_SOURCE_DIR} ${xent_highway_BINARY_DIR} EXCLUDE_FROM_ALL)
  # Its headers are not held to xent's warnings.
  get_target_property(includes hwy INTERFACE_INCLUDE_DIRECTORIES)
  set_target_properties(hwy PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${includes}")
endfunction()
xent_add_highway()
