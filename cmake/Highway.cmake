# Brings the target `hwy`: Highway's pinned release, built static, position-independent and hidden, or, with
# XENT_SYSTEM_HIGHWAY, whatever find_package finds. Distributions ship Highway shared and often too old, and two
# versions of it in one process must not see each other, hence the pinned build by default.
include(${CMAKE_CURRENT_LIST_DIR}/Fetch.cmake)

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

# The archive: what the user names, else what scripts/setup.sh brought, else upstream; the same bytes for all three
# (Debian's highway_1.2.0.orig.tar.gz is upstream's tarball).
set(xent_highway_brought ${PROJECT_SOURCE_DIR}/.cache/highway/highway_${XENT_HIGHWAY_VERSION}.orig.tar.gz)
if(XENT_HIGHWAY_ARCHIVE)
  if(NOT EXISTS "${XENT_HIGHWAY_ARCHIVE}")
    message(FATAL_ERROR "xent: XENT_HIGHWAY_ARCHIVE is ${XENT_HIGHWAY_ARCHIVE}, which does not exist.")
  endif()
  get_filename_component(xent_highway_url "${XENT_HIGHWAY_ARCHIVE}" ABSOLUTE)
elseif(EXISTS ${xent_highway_brought})
  set(xent_highway_url ${xent_highway_brought})
else()
  set(xent_highway_url https://github.com/google/highway/archive/refs/tags/${XENT_HIGHWAY_VERSION}.tar.gz)
endif()
message(STATUS "xent: Highway ${XENT_HIGHWAY_VERSION} from ${xent_highway_url}")

xent_fetch(xent_highway ${xent_highway_url} ${XENT_HIGHWAY_SHA256}
  HWY_ENABLE_CONTRIB HWY_ENABLE_EXAMPLES HWY_ENABLE_TESTS HWY_ENABLE_INSTALL)
xent_headers_are_system(hwy)
