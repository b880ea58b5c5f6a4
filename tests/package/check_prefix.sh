#!/usr/bin/env bash
# check_prefix.sh PREFIX FOLDER: use the penstock installed in PREFIX as C and C++ programs do, with
# CMake and with pkg-config, with every compiler that there is. Works in FOLDER, which is emptied.
# Needs CMake and Ninja or make; CMAKE names another cmake.
set -euo pipefail
prefix="$(cd "$1" && pwd)"
folder="$2"
here="$(cd "$(dirname "$0")" && pwd)"
examples="$here/../../examples"
cmake="${CMAKE:-cmake}"
rm -rf "$folder"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
log="$folder/log.txt"
strict="-Wall -Wextra -Wconversion -Werror"

fail() {
  [ ! -f "$log" ] || cat "$log"
  echo "FAILED: $*"
  exit 1
}
quiet() { "$@" >"$log" 2>&1 || fail "$*"; }
# expect_refusal WORDS COMMAND...: it fails, and says WORDS, however the lines are broken.
expect_refusal() {
  local words="$1"
  shift
  ! "$@" >"$log" 2>&1 || fail "worked, but should not: $*"
  tr -s ' \n' '  ' <"$log" | grep -qF -- "$words" || fail "does not say \"$words\": $*"
}
# It has learned, or its status says that it has not.
train() {
  quiet "$@"
  grep -q '^loss ' "$log" || fail "$*: no loss"
  printf '%s: %s\n' "${1#"$folder"/}" "$(grep '^loss ' "$log")"
}

config="$(find "$prefix" -name penstockConfig.cmake)"
[ -n "$config" ] || fail "no penstockConfig.cmake below $prefix"
libdir="$(cd "$(dirname "$config")/../.." && pwd)"
grep -rIl --include='*.cmake' --include='*.pc' -e "$prefix" "$libdir" && fail "names its own folder" || true

tested=0
for pair in gcc:g++ clang:clang++; do
  cc="${pair%:*}" cxx="${pair#*:}"
  if ! command -v "$cc" >/dev/null || ! command -v "$cxx" >/dev/null; then
    echo "$cc: not there"
    continue
  fi
  for language in c cpp; do
    build="$folder/$cc-$language"
    variable=CXX compiler="$cxx"
    [ "$language" = cpp ] || variable=C compiler="$cc"
    quiet "$cmake" -S "$examples/$language" -B "$build" -DCMAKE_PREFIX_PATH="$prefix" \
      -DCMAKE_BUILD_TYPE=Release "-DCMAKE_${variable}_COMPILER=$compiler" \
      "-DCMAKE_${variable}_FLAGS=$strict"
    quiet "$cmake" --build "$build"
    train "$build/train_sru"
    train "$build/train_sliced"
    tested=$((tested + 1))
  done
done
[ "$tested" -gt 0 ] || fail "no compiler"

# ---- pkg-config ------------------------------------------------------------------------------------
if command -v pkg-config >/dev/null; then
  export PKG_CONFIG_PATH="$libdir/pkgconfig"
  read -r -a flags <<<"$(pkg-config --cflags --libs penstock) -Wl,-rpath,$libdir"
  quiet "${CC:-cc}" -std=c99 -pedantic -O2 "$examples/c/train_sru.c" -o "$folder/c" "${flags[@]}" -lm
  quiet "${CXX:-c++}" -std=c++17 -O2 "$examples/cpp/train_sru.cc" -o "$folder/cpp" "${flags[@]}"
  train "$folder/c"
  grep -q "^penstock $(pkg-config --modversion penstock) on" "$log" || fail "pkg-config: the version"
  train "$folder/cpp"
else
  echo "pkg-config: not there"
fi

# ---- versions, components, and a program that carries the library with it ------------------------------
bundle() { # bundle PREFIX BUILD ARGUMENTS...
  "$cmake" -S "$here/bundle" -B "$folder/$2" -DCMAKE_PREFIX_PATH="$1" "${@:3}"
}
expect_refusal "version: 0." bundle "$prefix" newer -DASK=99.0
expect_refusal 'penstock has no component "gpu"' bundle "$prefix" unknown "-DASK=COMPONENTS;gpu"
if ls "$libdir"/libpenstock_cuda1[23].so >/dev/null 2>&1; then
  with_plugin="$prefix"
else
  expect_refusal "this penstock was built without its CUDA plugin" \
    bundle "$prefix" none "-DASK=COMPONENTS;cuda"
  expect_refusal "Build penstock with -DPENSTOCK_CUDA=ON" \
    bundle "$prefix" none "-DASK=COMPONENTS;cuda"
  quiet bundle "$prefix" optional "-DASK=OPTIONAL_COMPONENTS;cuda"
  # Something in its place that is no plugin: it must be found, and refused.
  with_plugin="$folder/prefix"
  cp -a "$prefix" "$with_plugin"
  echo 'int nothing;' | "${CC:-cc}" -shared -fPIC -x c - \
    -o "$with_plugin${libdir#"$prefix"}/libpenstock_cuda13.so"
fi
quiet bundle "$with_plugin" cuda "-DASK=COMPONENTS;cuda" -DCUDA=ON
quiet "$cmake" --build "$folder/cuda"
# Moved elsewhere, it finds all three beside itself.
mkdir "$folder/moved"
cp "$folder"/cuda/config "$folder"/cuda/*.so* "$folder/moved"
[ "$with_plugin" = "$prefix" ] || rm -rf "$with_plugin"
quiet env -u LD_LIBRARY_PATH ldd "$folder/moved/config"
grep -q "libpenstock.* => $folder/moved/" "$log" || fail "the program takes another library"
quiet env -u LD_LIBRARY_PATH -u PENSTOCK_CUDA_PLUGIN "$folder/moved/config"
! grep -q "this build has no CUDA plugin" "$log" || fail "the plugin beside the library was not found"
[ "$with_plugin" = "$prefix" ] || grep -q "the CUDA plugin was built for another version" "$log" ||
  fail "what stands in for the plugin was not refused"
echo "the prefix is as it should be"
