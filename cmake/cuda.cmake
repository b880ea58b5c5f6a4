# The CUDA plugin, libpenstock_cuda<major>.so: a module of its own, loaded on first use.
#
# nvcc is called directly, because neither CMake's CUDA language nor FindCUDAToolkit knows how the
# nvidia-* packages of PyPI lay out a toolkit.
#
#   PENSTOCK_CUDA                AUTO, ON, OFF
#   PENSTOCK_CUDA_ROOT           a toolkit (bin/nvcc below it); also from the environment
#   PENSTOCK_CUDA_ARCHITECTURES  e.g. "80-real;90-real;90-virtual"
#   PENSTOCK_CUDA_FLAGS          more flags for nvcc

set(PENSTOCK_CUDA_ROOT "$ENV{PENSTOCK_CUDA_ROOT}" CACHE PATH "CUDA toolkit to build the plugin with")
set(PENSTOCK_CUDA_ARCHITECTURES "80-real;90-real;90-virtual" CACHE STRING
    "Architectures: NN-real is machine code, NN-virtual PTX that newer devices translate")
set(PENSTOCK_CUDA_FLAGS "" CACHE STRING "More flags for nvcc")
set(PENSTOCK_CUDA_SOURCES cuda_backend convert device gemm graphs sum_rows)
set(PENSTOCK_CUDA_FOUND FALSE)

# find_program without an entry in the cache: what is found may be gone at the next configuration.
# Searches the given places and PATH, or with NO_DEFAULT_PATH the places alone.
macro(_penstock_find_program result)
  unset(_penstock_program CACHE)
  unset(_penstock_program)
  find_program(_penstock_program ${ARGN} NO_CMAKE_SYSTEM_PATH)
  set(${result} "${_penstock_program}")
  if(NOT ${result})
    set(${result} "")
  endif()
  unset(_penstock_program CACHE)
endmacro()

# Set `result` to an nvcc, or to nothing.
function(_penstock_find_nvcc result)
  set(nvcc "")
  set(hints "")
  if(PENSTOCK_CUDA_ROOT)
    # Named by the user, so nothing else will do.
    _penstock_find_program(nvcc NAMES nvcc PATHS ${PENSTOCK_CUDA_ROOT}/bin NO_DEFAULT_PATH)
  else()
    if(NOT "$ENV{CUDACXX}" STREQUAL "" AND EXISTS "$ENV{CUDACXX}")
      set(nvcc "$ENV{CUDACXX}")
    endif()
    foreach(variable CUDA_HOME CUDA_PATH)
      if(NOT nvcc AND NOT "$ENV{${variable}}" STREQUAL "")
        _penstock_find_program(nvcc NAMES nvcc PATHS "$ENV{${variable}}/bin" NO_DEFAULT_PATH)
      endif()
    endforeach()
    if(NOT nvcc)
      _penstock_find_program(nvcc NAMES nvcc)
    endif()
    if(NOT nvcc)
      if(DEFINED Python_EXECUTABLE)
        set(python ${Python_EXECUTABLE})
      else()
        _penstock_find_program(python NAMES python3 python)
      endif()
      if(python)
        execute_process(
          COMMAND ${python} -c "import sys; print(';'.join(p + '/nvidia' for p in sys.path if p))"
          OUTPUT_VARIABLE folders ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
        foreach(folder IN LISTS folders)
          file(GLOB candidates ${folder}/cu*/bin ${folder}/cuda_nvcc/bin)
          # The newest major version first.
          list(SORT candidates COMPARE NATURAL ORDER DESCENDING)
          list(APPEND hints ${candidates})
        endforeach()
        _penstock_find_program(nvcc NAMES nvcc PATHS ${hints} NO_DEFAULT_PATH)
      endif()
    endif()
    if(NOT nvcc)
      _penstock_find_program(nvcc NAMES nvcc PATHS /usr/local/cuda/bin NO_DEFAULT_PATH)
    endif()
  endif()
  set(${result} "${nvcc}" PARENT_SCOPE)
endfunction()

# Find a toolkit that works. Sets PENSTOCK_NVCC, PENSTOCK_CUDA_MAJOR, PENSTOCK_CUDA_VERSION,
# PENSTOCK_CUDART, PENSTOCK_NVCC_FLAGS and PENSTOCK_CUDA_FOUND, or PENSTOCK_CUDA_PROBLEM in words.
macro(_penstock_find_cuda)
  set(PENSTOCK_CUDA_PROBLEM "")
  _penstock_find_nvcc(_nvcc)
  if(NOT _nvcc)
    if(PENSTOCK_CUDA_ROOT)
      set(PENSTOCK_CUDA_PROBLEM "there is no bin/nvcc in PENSTOCK_CUDA_ROOT=${PENSTOCK_CUDA_ROOT}")
    else()
      set(PENSTOCK_CUDA_PROBLEM "no nvcc was found")
    endif()
  else()
    # What is found may be a script or a link; nvcc itself knows where its toolkit is.
    execute_process(COMMAND ${_nvcc} --dryrun -x cu /dev/null
                    RESULT_VARIABLE _status OUTPUT_VARIABLE _out ERROR_VARIABLE _err)
    if("${_out}${_err}" MATCHES "_HERE_=([^\n]*)")
      string(STRIP "${CMAKE_MATCH_1}" _here)
      get_filename_component(_top "${_here}/.." REALPATH)
      set(PENSTOCK_NVCC ${_here}/nvcc)
    else()
      set(PENSTOCK_CUDA_PROBLEM "${_nvcc} does not run: ${_out}${_err}")
    endif()
  endif()
  if(NOT PENSTOCK_CUDA_PROBLEM)
    execute_process(COMMAND ${PENSTOCK_NVCC} --version OUTPUT_VARIABLE _out ERROR_VARIABLE _err)
    if("${_out}" MATCHES "release ([0-9]+)\\.([0-9]+)")
      set(PENSTOCK_CUDA_MAJOR ${CMAKE_MATCH_1})
      set(PENSTOCK_CUDA_VERSION ${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
      if(PENSTOCK_CUDA_MAJOR LESS 12)
        set(PENSTOCK_CUDA_PROBLEM "CUDA 12 or newer is needed (actual: ${PENSTOCK_CUDA_VERSION})")
      endif()
    else()
      set(PENSTOCK_CUDA_PROBLEM "${PENSTOCK_NVCC} does not tell its version: ${_out}${_err}")
    endif()
    file(GLOB _cudart ${_top}/lib64/libcudart_static.a ${_top}/lib/libcudart_static.a
         ${_top}/targets/*/lib/libcudart_static.a ${_top}/../cuda_runtime/lib/libcudart_static.a)
    if(_cudart)
      list(GET _cudart 0 PENSTOCK_CUDART)
    elseif(NOT PENSTOCK_CUDA_PROBLEM)
      set(PENSTOCK_CUDA_PROBLEM "there is no libcudart_static.a below ${_top}")
    endif()
  endif()
  if(NOT PENSTOCK_CUDA_PROBLEM)
    set(PENSTOCK_NVCC_FLAGS -std=c++17 -O3 -ccbin ${CMAKE_CXX_COMPILER}
        -Xcompiler=-fPIC,-fvisibility=hidden,-fno-math-errno,-Wall,-Wextra
        -Xcompiler=-Wno-unused-function ${PENSTOCK_CUDA_FLAGS})
    foreach(_folder include ../cuda_runtime/include ../cuda_cccl/include)
      if(IS_DIRECTORY ${_top}/${_folder})
        list(APPEND PENSTOCK_NVCC_FLAGS -isystem ${_top}/${_folder})
      endif()
    endforeach()
    set(_oldest 999)
    foreach(_architecture IN LISTS PENSTOCK_CUDA_ARCHITECTURES)
      if(_architecture MATCHES "^([0-9]+)(a?)-(real|virtual)$")
        set(_kind sm)
        if(CMAKE_MATCH_3 STREQUAL "virtual")
          set(_kind compute)
        endif()
        set(_number ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
        list(APPEND PENSTOCK_NVCC_FLAGS
             -gencode=arch=compute_${_number},code=${_kind}_${_number})
        if(CMAKE_MATCH_1 LESS _oldest)
          set(_oldest ${CMAKE_MATCH_1})
        endif()
      else()
        message(FATAL_ERROR "PENSTOCK_CUDA_ARCHITECTURES: expected entries such as 90-real or "
                            "90-virtual (actual: ${_architecture})")
      endif()
    endforeach()
    list(APPEND PENSTOCK_NVCC_FLAGS -DPENSTOCK_CUDA_MIN_ARCHITECTURE=${_oldest})
    # A toolkit that is there and does not work must not stop the CPU library, so try it; once.
    string(SHA1 _key "${PENSTOCK_NVCC} ${PENSTOCK_NVCC_FLAGS} ${PENSTOCK_CUDART}")
    if(NOT "${PENSTOCK_CUDA_WORKS}" STREQUAL "${_key}")
      set(_probe ${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/penstock_cuda_probe)
      file(WRITE ${_probe}.cu "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#include <cuda_runtime.h>\n"
           "__global__ void probe(float* x) { x[threadIdx.x] = __half2float(__float2half(1.0f)); }\n")
      execute_process(COMMAND ${PENSTOCK_NVCC} ${PENSTOCK_NVCC_FLAGS} -c ${_probe}.cu -o ${_probe}.o
                      RESULT_VARIABLE _status OUTPUT_VARIABLE _out ERROR_VARIABLE _err)
      if(_status EQUAL 0)
        set(PENSTOCK_CUDA_WORKS ${_key} CACHE INTERNAL "The CUDA toolkit that was tried and works")
      else()
        set(PENSTOCK_CUDA_PROBLEM "${PENSTOCK_NVCC} does not compile: ${_out}${_err}")
      endif()
    endif()
  endif()
  if(NOT PENSTOCK_CUDA_PROBLEM)
    set(PENSTOCK_CUDA_FOUND TRUE)
  endif()
endmacro()

function(_penstock_add_cuda_plugin)
  set(plugin penstock_cuda${PENSTOCK_CUDA_MAJOR})
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/cuda)
  file(MAKE_DIRECTORY ${folder})
  _penstock_find_program(filter NAMES c++filt)
  set(sources "")
  foreach(name IN LISTS PENSTOCK_CUDA_SOURCES)
    list(APPEND sources src/cuda/${name}.cu)
  endforeach()
  foreach(cell IN LISTS PENSTOCK_CUDA_CELLS)
    list(APPEND sources src/cells/${cell}_cuda.cu)
  endforeach()
  set(objects "")
  set(reports "")
  foreach(source IN LISTS sources)
    get_filename_component(name ${source} NAME_WE)
    set(object ${folder}/${name}.o)
    set(report ${folder}/${name}.txt)
    add_custom_command(
      OUTPUT ${object} ${report}
      COMMAND ${CMAKE_COMMAND} -DREPORT=${report} -DFILTER=${filter}
              -P ${PROJECT_SOURCE_DIR}/cmake/compile_cuda.cmake --
              ${PENSTOCK_NVCC} ${PENSTOCK_NVCC_FLAGS} -I${PROJECT_SOURCE_DIR}/src
              -I${PROJECT_SOURCE_DIR}/include -MD -MF ${object}.d -MT ${object}
              -c ${PROJECT_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${PROJECT_SOURCE_DIR}/${source} ${PROJECT_SOURCE_DIR}/cmake/compile_cuda.cmake
      DEPFILE ${object}.d
      COMMENT "nvcc ${source}"
      VERBATIM)
    list(APPEND objects ${object})
    list(APPEND reports ${report})
  endforeach()
  add_custom_command(
    OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/resource_usage.txt
    COMMAND ${CMAKE_COMMAND} -DREPORT=${CMAKE_CURRENT_BINARY_DIR}/resource_usage.txt
            -P ${PROJECT_SOURCE_DIR}/cmake/join_reports.cmake -- ${reports}
    DEPENDS ${reports} ${PROJECT_SOURCE_DIR}/cmake/join_reports.cmake
    COMMENT "resource_usage.txt: registers, shared memory and spills of every kernel"
    VERBATIM)
  add_custom_target(penstock_cuda_report ALL
                    DEPENDS ${CMAKE_CURRENT_BINARY_DIR}/resource_usage.txt)

  add_library(${plugin} MODULE src/cuda/cells.cc src/cuda/cublas.cc src/cuda/driver.cc
              src/cuda/plugin.cc ${objects})
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  target_include_directories(${plugin} PRIVATE src)
  target_compile_definitions(${plugin} PRIVATE PENSTOCK_CUDA_MAJOR=${PENSTOCK_CUDA_MAJOR})
  target_link_libraries(${plugin} PRIVATE penstock ${PENSTOCK_CUDART} Threads::Threads
                        ${CMAKE_DL_LIBS} rt)
  # One symbol goes out. The runtime's are not for others: a process may hold several copies of it.
  file(WRITE ${folder}/exports.map "{ global: penstock_plugin_backend; local: *; };\n")
  target_link_options(${plugin} PRIVATE -Wl,--version-script=${folder}/exports.map)
  penstock_compile_options(${plugin})
  add_dependencies(${plugin} penstock_cuda_report)
  set_target_properties(${plugin} PROPERTIES PREFIX "lib" SUFFIX ".so"
                        BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN")
  install(TARGETS ${plugin} LIBRARY DESTINATION ${PENSTOCK_LIBDIR} COMPONENT runtime)
endfunction()

if(NOT PENSTOCK_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "PENSTOCK_CUDA: expected AUTO, ON or OFF (actual: ${PENSTOCK_CUDA})")
elseif(PENSTOCK_CUDA STREQUAL "OFF")
  message(STATUS "CUDA plugin: off")
elseif(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  if(PENSTOCK_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PENSTOCK_CUDA=ON: the CUDA plugin is built on Linux only")
  endif()
  message(STATUS "CUDA plugin: skipped, Linux only")
else()
  _penstock_find_cuda()
  if(PENSTOCK_CUDA_FOUND)
    list(JOIN PENSTOCK_CUDA_ARCHITECTURES " " _architectures)
    message(STATUS "CUDA plugin: ${PENSTOCK_NVCC} ${PENSTOCK_CUDA_VERSION} for ${_architectures}")
    _penstock_add_cuda_plugin()
  elseif(PENSTOCK_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "PENSTOCK_CUDA=ON, but ${PENSTOCK_CUDA_PROBLEM}\n"
      "Install CUDA 12 or newer and set PENSTOCK_CUDA_ROOT to its folder, or get the compiler from "
      "PyPI: pip install \"cuda-toolkit[nvcc,cudart,crt,nvvm,cccl]==13.0.*\" and set "
      "PENSTOCK_CUDA_ROOT=<site-packages>/nvidia/cu13.")
  else()
    message(STATUS "CUDA plugin: skipped, ${PENSTOCK_CUDA_PROBLEM}")
  endif()
endif()
