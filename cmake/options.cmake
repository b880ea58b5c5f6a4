# Compiler flags shared by every target.

function(penstock_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra)
  if(PENSTOCK_WARNINGS)
    target_compile_options(${target} PRIVATE -Wshadow -Wconversion -Wno-sign-conversion -Werror)
  endif()
  if(PENSTOCK_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${PENSTOCK_SANITIZE}
                           -fno-omit-frame-pointer -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${PENSTOCK_SANITIZE})
  endif()
endfunction()

# What numerical code may assume. Not -ffast-math: NaN, infinity and the order of sums keep their
# meaning.
set(PENSTOCK_MATH_FLAGS -fno-math-errno -fno-trapping-math -fno-signed-zeros -ffp-contract=fast)
