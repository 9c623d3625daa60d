# CUDA language and libraries. sm_80, sm_90a and PTX for what comes after.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
# CMake before 3.25.2 does not know CUDA20.
add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
find_library(GPTQD_NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}/lib $ENV{CUDA_HOME}/lib REQUIRED)
find_path(GPTQD_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} REQUIRED)
