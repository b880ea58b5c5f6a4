#!/bin/sh
# Measures everything that README and docs show of the CPU, and writes it there. In the root of a
# clone, on a machine that does nothing else, about half an hour on two cores:
#
#   cmake --preset cpu -DPENSTOCK_BENCHMARKS=ON && cmake --build --preset cpu
#   PYTHON=.venv/bin/python sh bench/publish.sh              # all of it, or
#   PYTHON=.venv/bin/python sh bench/publish.sh cpu srufig   # some, by the names below; "write" for
#                                                            # pictures and figures alone
#
# PYTHON has penstock and its bench extra; SCAN is the program bench_sru_scan, not measured if absent.
set -e
python=${PYTHON:-python}
scan=${SCAN:-build/cpu/bench_sru_scan}
results=bench/results
images=docs/images
parts=${*:-cpu cpu-no-amx srufig srnn-table3 growth cuts sru_scan}

bench() { "$python" -m penstock.cli bench "$@"; }

for part in $parts; do
  case $part in
    cpu | cpu-no-amx) file=$(echo "$part" | tr - _) ;;
    srufig | srnn-table3 | growth | cuts) file=$(echo "$part" | tr - _)_cpu ;;
    sru_scan)
      if [ -x "$scan" ]; then
        "$python" bench/sru_scan.py "$scan" --out $results/sru_scan_cpu.json
      else
        echo "sru_scan: left out, $scan is not there" >&2
      fi
      continue ;;
    write) continue ;;
    *) echo "expected cpu, cpu-no-amx, srufig, srnn-table3, growth, cuts, sru_scan or write (actual: $part)" >&2
       exit 2 ;;
  esac
  bench --suite "$part" --out "$results/$file.json"
done

bench plot $results/srufig_cpu.json --out $images/srufig_cpu.png \
  --title "SRU, LSTM and convolutions: time by width, lower is better"
bench plot $results/srnn_table3_cpu.json --out $images/srnn_table3_cpu.png
bench plot $results/growth_cpu.json --out $images/growth_cpu.png
bench plot $results/growth_cpu.json --out $images/growth_threads_cpu.png --x threads --only T=1024
bench plot $results/growth_cpu.json --kind memory --out $images/growth_memory_cpu.png
"$python" bench/tables.py
