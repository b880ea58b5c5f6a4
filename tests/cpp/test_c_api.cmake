# The C interface's tests, for tests/cpp: one text compiled as C99 and as C++, and a comparison with
# the C++ interface over each backend.
enable_language(C)
set(penstock_c_as_cpp ${CMAKE_CURRENT_BINARY_DIR}/test_c_api_cpp.cc)
file(GENERATE OUTPUT ${penstock_c_as_cpp}
     CONTENT "#define TEST_NAME test_c_api_cpp\n#include \"${CMAKE_CURRENT_LIST_DIR}/test_c_api.c\"\n")
add_library(penstock_c_tests OBJECT ${CMAKE_CURRENT_LIST_DIR}/test_c_api.c ${penstock_c_as_cpp})
target_link_libraries(penstock_c_tests PRIVATE penstock)
set_target_properties(penstock_c_tests PROPERTIES C_STANDARD 99 C_STANDARD_REQUIRED ON
                                                  C_EXTENSIONS OFF)
target_compile_options(penstock_c_tests PRIVATE -pedantic)
penstock_compile_options(penstock_c_tests)

add_executable(penstock_c_api_tests
  ${CMAKE_CURRENT_LIST_DIR}/backends.cc
  ${CMAKE_CURRENT_LIST_DIR}/recurrent_problem.cc
  ${CMAKE_CURRENT_LIST_DIR}/sru_problem.cc
  ${CMAKE_CURRENT_LIST_DIR}/test_c_api.cc
  $<TARGET_OBJECTS:penstock_c_tests>)
target_include_directories(penstock_c_api_tests PRIVATE ${CMAKE_CURRENT_LIST_DIR}
                                                        ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(penstock_c_api_tests PRIVATE penstock GTest::gtest_main Threads::Threads
                      ${CMAKE_DL_LIBS})
penstock_compile_options(penstock_c_api_tests)
if(TARGET penstock_cuda_emulated)
  add_dependencies(penstock_c_api_tests penstock_cuda_emulated)
  target_compile_definitions(penstock_c_api_tests PRIVATE
    PENSTOCK_EMULATED_PLUGIN="$<TARGET_FILE:penstock_cuda_emulated>")
endif()
if(PENSTOCK_CUDA_FOUND)
  add_dependencies(penstock_c_api_tests penstock_cuda${PENSTOCK_CUDA_MAJOR})
  target_compile_definitions(penstock_c_api_tests PRIVATE
    PENSTOCK_TESTED_CUDA_PLUGIN="$<TARGET_FILE:penstock_cuda${PENSTOCK_CUDA_MAJOR}>")
endif()
add_test(NAME cpp.c COMMAND penstock_c_api_tests)
