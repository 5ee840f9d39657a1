# SPDX-License-Identifier: Apache-2.0
# Read by CMake right after project() (CMAKE_PROJECT_INCLUDE), see build_interfaces.py.
#
# The ROS 2 wheels were built in a container, and the CMake targets they export still name that
# container's Python headers. CMake refuses imported targets whose include directories do not
# exist, so those directories are dropped here; the headers of the Python in use are found by the
# interface generator itself. Deferred: find_package() has to have imported the targets first.
cmake_minimum_required(VERSION 3.21)

function(drift_ros_drop_missing_includes)
  get_property(targets DIRECTORY "${CMAKE_SOURCE_DIR}" PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(includes ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT includes)
      continue()
    endif()
    set(kept "")
    foreach(directory IN LISTS includes)
      if(NOT IS_ABSOLUTE "${directory}" OR EXISTS "${directory}")
        list(APPEND kept "${directory}")
      endif()
    endforeach()
    if(NOT "${kept}" STREQUAL "${includes}")
      set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${kept}")
    endif()
  endforeach()
endfunction()

if(CMAKE_SOURCE_DIR STREQUAL PROJECT_SOURCE_DIR)
  cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL drift_ros_drop_missing_includes)
endif()
