# gptqd_module(NAME SOURCES a.cpp ... DEPENDS other_modules... LIBRARIES external...)
#   makes the library gptqd_NAME, known as gptqd::NAME. With CMAKE_UNITY_BUILD (the preset fuzz) the sources of a folder
#   are compiled at once.
function(gptqd_module name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS;LIBRARIES" ${ARGN})
  add_library(gptqd_${name} STATIC ${arg_SOURCES})
  set_target_properties(gptqd_${name} PROPERTIES UNITY_BUILD_MODE GROUP)
  foreach(source IN LISTS arg_SOURCES)
    get_filename_component(folder "${source}" DIRECTORY)
    set_source_files_properties("${source}" PROPERTIES UNITY_GROUP "sources_${folder}")
  endforeach()
  add_library(gptqd::${name} ALIAS gptqd_${name})
  list(TRANSFORM arg_DEPENDS PREPEND gptqd::)
  target_link_libraries(gptqd_${name} PUBLIC gptqd_settings fmt::fmt ${arg_DEPENDS} ${arg_LIBRARIES})
endfunction()

# gptqd_test(NAME SOURCES a.cpp ... DEPENDS modules... [RANKS 1 2 3 4] [LONG])
#   makes the GoogleTest program NAME. Without RANKS each of its tests is a ctest of its own; with RANKS the whole
#   program runs once for each number of MPI ranks (its main initialises MPI). With GPTQD_UNITY_TESTS its sources are
#   compiled eight at a time, which takes half the time: names in unnamed namespaces have to differ within a program.
#   LONG: its tests keep all processors busy for up to minutes; one of them at a time runs beside the others, from the start.
function(gptqd_test name)
  cmake_parse_arguments(arg "LONG" "" "SOURCES;DEPENDS;LIBRARIES;RANKS;LABELS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests/bin" UNITY_BUILD ${GPTQD_UNITY_TESTS} UNITY_BUILD_BATCH_SIZE 8)
  # Tests are compiled more often than they run long; what they test keeps its own flags.
  target_compile_options(${name} PRIVATE $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
  list(TRANSFORM arg_DEPENDS PREPEND gptqd::)
  target_link_libraries(${name} PRIVATE ${arg_DEPENDS} gptqd_test_support ${arg_LIBRARIES} GTest::gmock)
  if(arg_RANKS)
    target_link_libraries(${name} PRIVATE GTest::gtest)
    foreach(ranks IN LISTS arg_RANKS)
      add_test(NAME ${name}.np${ranks}
        COMMAND ${MPIEXEC_EXECUTABLE} ${GPTQD_MPIEXEC_FLAGS} -np ${ranks} $<TARGET_FILE:${name}>)
      set_tests_properties(${name}.np${ranks} PROPERTIES
        ENVIRONMENT "${GPTQD_TEST_ENVIRONMENT}" TIMEOUT 120 LABELS "mpi;${arg_LABELS}" PROCESSORS 2)
    endforeach()
  else()
    target_link_libraries(${name} PRIVATE GTest::gtest_main)
    gtest_discover_tests(${name} TEST_PREFIX "${name}." DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 120)
    set(long_properties "")
    if(arg_LONG)
      set(long_properties " COST 100 RESOURCE_LOCK processors TIMEOUT 300")
    endif()
    # gtest_discover_tests flattens lists, so the environment and the labels follow in a file of their own. A parameter
    # named cuda or cuda_... is a device (tests/kernels/device.hpp).
    set(properties "${CMAKE_CURRENT_BINARY_DIR}/${name}_properties.cmake")
    file(WRITE "${properties}"
      "foreach(test IN LISTS ${name}_TESTS)\n"
      "  set(labels \"${arg_LABELS}\")\n"
      "  if(test MATCHES \"/cuda(_| |$)\")\n"
      "    list(APPEND labels gpu)\n"
      "  endif()\n"
      "  set_tests_properties(\"\${test}\" PROPERTIES ENVIRONMENT \"${GPTQD_TEST_ENVIRONMENT}\" LABELS \"\${labels}\"${long_properties})\n"
      "endforeach()\n")
    set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${properties}")
  endif()
endfunction()
