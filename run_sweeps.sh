#!/usr/bin/env bash
# Run sweeps one after the other, each followed by its tables:
#
#     ./run_sweeps.sh sweeps/shakespeare_lr.py [sweeps/another.py ...] [options of sweep.py, as --jobs 2]
#
# Ctrl-C or SIGTERM lets the runs save and ends it; the same command goes on. Exit status: the worst of its sweeps.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=python3
[ -x "$here/.venv/bin/python" ] && python=$here/.venv/bin/python

sweeps=() options=() out='' tables=yes previous=''
for argument in "$@"; do
    case $argument in
        --out=*) out=${argument#--out=} ;;
        --dry-run|-h|--help) tables=no ;;
    esac
    [ "$previous" = --out ] && out=$argument
    if [[ $argument == *.py ]]; then sweeps+=("$argument"); else options+=("$argument"); fi
    previous=$argument
done
if [ ${#sweeps[@]} -eq 0 ]; then exec "$python" "$here/sweep.py" "$@"; fi
if [ ${#sweeps[@]} -gt 1 ] && [ -n "$out" ]; then
    echo "error: --out is the folder of one sweep, and there are ${#sweeps[@]}; leave it out" >&2
    exit 2
fi

stopped=no child=''
# (both reach the sweep as SIGTERM: a job in the background does not hear Ctrl-C)
trap 'stopped=INT; [ -n "$child" ] && kill -TERM "$child" 2>/dev/null' INT
trap 'stopped=TERM; [ -n "$child" ] && kill -TERM "$child" 2>/dev/null' TERM
status=0
for sweep in "${sweeps[@]}"; do
    # in the background, so that a signal to this script reaches it at once
    "$python" "$here/sweep.py" "$sweep" ${options[@]+"${options[@]}"} & child=$!
    wait "$child"; ended=$?
    while kill -0 "$child" 2>/dev/null; do wait "$child"; ended=$?; done
    child=''
    [ $ended -gt $status ] && status=$ended
    folder=${out:-out/sweeps/$(basename "$sweep" .py)}
    if [ $stopped = INT ] && [ $ended -ge 128 ]; then exit 130; fi  # before the sweep began: it has said so
    if [ $stopped != no ]; then break; fi
    if [ $tables = yes ] && [ $ended -lt 2 ] && [ -f "$here/summarize_sweep.py" ] && [ -f "$folder/runs.csv" ]; then
        "$python" "$here/summarize_sweep.py" "$folder" || { ended=$?; [ $ended -gt $status ] && status=$ended; }
    fi
done
exit $status
