# Install rules: library, headers, program, CMake package and pkg-config file; all of it may be moved as a whole.
include(CMakePackageConfigHelpers)

set(xent_is_shared FALSE)
set(xent_has_static TRUE)
set(xent_static_target xent)
if(BUILD_SHARED_LIBS)
  set(xent_is_shared TRUE)
  set(xent_static_target xent_static)
  if(NOT TARGET xent_static)
    set(xent_has_static FALSE)
  endif()
endif()

# Two export sets: who uses the shared library needs neither OpenMP nor a C++ compiler.
set(xent_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/xent)
if(xent_is_shared)
  install(TARGETS xent EXPORT xentTargets)
  install(EXPORT xentTargets NAMESPACE xent:: DESTINATION ${xent_cmake_dir})
endif()
if(xent_has_static)
  set_target_properties(${xent_static_target} PROPERTIES EXPORT_NAME static)
  install(TARGETS ${xent_static_target} EXPORT xentStaticTargets)
  install(EXPORT xentStaticTargets NAMESPACE xent:: DESTINATION ${xent_cmake_dir})
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/xent DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/xentConfig.cmake.in
  ${PROJECT_BINARY_DIR}/package/xentConfig.cmake INSTALL_DESTINATION ${xent_cmake_dir})
# Before 1.0 a new minor version may change the API.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/xentConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/xentConfig.cmake ${PROJECT_BINARY_DIR}/package/xentConfigVersion.cmake
  DESTINATION ${xent_cmake_dir})

# pkg-config: what a static link needs is private where a shared library stands in front of it.
file(RELATIVE_PATH xent_pc_up /x/${CMAKE_INSTALL_LIBDIR}/pkgconfig /x)
string(REGEX REPLACE "/$" "" xent_pc_up "${xent_pc_up}")
set(xent_pc_static "-lstdc++ -lm")
if(XENT_OPENMP)
  # The runtime's name from the compiler's own answer: gomp, omp or iomp5; pthread comes with it.
  foreach(lib IN LISTS OpenMP_CXX_LIB_NAMES)
    string(APPEND xent_pc_static " -l${lib}")
  endforeach()
endif()
set(xent_pc_requires "")
set(xent_pc_libs "")
set(xent_pc_libs_private "")
if(XENT_SYSTEM_HIGHWAY)
  set(xent_pc_requires "Requires.private: libhwy\n")
endif()
if(xent_is_shared)
  set(xent_pc_libs_private "Libs.private: ${xent_pc_static}\n")
else()
  set(xent_pc_libs " ${xent_pc_static}")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/xent.pc.in ${PROJECT_BINARY_DIR}/package/xent.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/package/xent.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(TARGET xent_cli)
  # Found beside the program, whatever the prefix.
  file(RELATIVE_PATH xent_bin_to_lib /x/${CMAKE_INSTALL_BINDIR} /x/${CMAKE_INSTALL_LIBDIR})
  if(UNIX AND NOT APPLE)
    set_target_properties(xent_cli PROPERTIES INSTALL_RPATH "$ORIGIN/${xent_bin_to_lib}")
  endif()
  install(TARGETS xent_cli)
endif()
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/THIRD_PARTY.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
