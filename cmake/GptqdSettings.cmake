# Language level, warnings and sanitizers, the same for every target.
include(GNUInstallDirs)
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(GPTQD_CCACHE ccache)
if(GPTQD_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${GPTQD_CCACHE}")
endif()

configure_file(${CMAKE_CURRENT_LIST_DIR}/version.hpp.in ${PROJECT_BINARY_DIR}/generated/version.hpp @ONLY)
add_library(gptqd_settings INTERFACE)
target_include_directories(gptqd_settings INTERFACE "${PROJECT_SOURCE_DIR}" "${PROJECT_BINARY_DIR}/generated")
# No contraction to fused multiply-add: our own loops give the same bits on every instruction set.
target_compile_options(gptqd_settings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wconversion -ffp-contract=off>
  # GCC 12 and 13 warn of std::string's own operator+ (GCC bug 105651).
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>
  $<$<AND:$<BOOL:${GPTQD_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
if(GPTQD_SANITIZE)
  target_compile_options(gptqd_settings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${GPTQD_SANITIZE} -fno-omit-frame-pointer>)
  target_link_options(gptqd_settings INTERFACE -fsanitize=${GPTQD_SANITIZE})
endif()
