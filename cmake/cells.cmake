# Sources compiled once per instruction set, and cells.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(PENSTOCK_ISAS base avx2 avx512)
else()
  set(PENSTOCK_ISAS base)
endif()
set(PENSTOCK_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(PENSTOCK_ISA_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
    -mprefer-vector-width=512)

# penstock_per_isa(target source...): compile the sources for each instruction set, each in a
# namespace of its own, into the target.
function(penstock_per_isa target)
  foreach(isa IN LISTS PENSTOCK_ISAS)
    set(objects ${target}_${isa})
    if(NOT TARGET ${objects})
      add_library(${objects} OBJECT)
      target_include_directories(${objects} PRIVATE ${PROJECT_SOURCE_DIR}/src
                                                    ${PROJECT_SOURCE_DIR}/include)
      target_compile_definitions(${objects} PRIVATE PENSTOCK_ISA_NAMESPACE=isa_${isa})
      target_compile_options(${objects} PRIVATE ${PENSTOCK_MATH_FLAGS} ${PENSTOCK_ISA_FLAGS_${isa}}
                             -Wno-psabi)
      penstock_compile_options(${objects})
      target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
    endif()
    foreach(source IN LISTS ARGN)
      target_sources(${objects} PRIVATE ${PROJECT_SOURCE_DIR}/${source})
    endforeach()
  endforeach()
endfunction()

# penstock_enable_amx(products detection): Intel's matrix unit, where the compiler knows it; two
# sources, of which the second runs on every processor.
include(CheckCXXCompilerFlag)
function(penstock_enable_amx products detection)
  if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT "avx512" IN_LIST PENSTOCK_ISAS)
    return()
  endif()
  set(flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mamx-tile -mamx-int8)
  string(JOIN " " joined ${flags})
  check_cxx_compiler_flag("${joined}" PENSTOCK_COMPILER_HAS_AMX)
  if(PENSTOCK_COMPILER_HAS_AMX)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND flags -Wno-uninitialized -Wno-maybe-uninitialized)  # false positives inside GCC's own headers
    endif()
    set_source_files_properties(${products} PROPERTIES COMPILE_OPTIONS "${flags}")
    set_source_files_properties(${products} ${detection} PROPERTIES COMPILE_DEFINITIONS PENSTOCK_AMX)
  endif()
endfunction()

# penstock_add_cell(name): src/cells/name.cc (checks, order of work), name_cpu.cc (the CPU's table),
# name_cpu_scans.cc (per instruction set), name_cuda.cu (the CUDA plugin).
set(PENSTOCK_CUDA_CELLS "")
macro(penstock_add_cell name)
  target_sources(penstock PRIVATE src/cells/${name}.cc src/cells/${name}_cpu.cc)
  penstock_per_isa(penstock src/cells/${name}_cpu_scans.cc)
  list(APPEND PENSTOCK_CUDA_CELLS ${name})
endmacro()
