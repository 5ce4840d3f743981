#!/usr/bin/env bash
# Run all measurements and tests on a GPU machine without a network: docs/gpu.md.
#
#     bash build/gpu-bundle/run.sh OUT [EARLIER] [-- OPTIONS]
#
# Run it in the root folder of the working tree. OUT is the folder for the results, at most eight
# files. EARLIER is a folder with the results of an earlier call, which this call continues. OPTIONS
# are passed to `python -m benchmarks gpu`. Environment variables: LIMIT (540) is the time limit in
# seconds, PYTHON (python3) the interpreter, and FASTGROW_WORK a folder for copies and compilers'
# caches, which should be kept between two calls on the same machine.
set -u
SECONDS=0
: "${LIMIT:=540}" "${PYTHON:=python3}" "${FASTGROW_WORK:=${TMPDIR:-/tmp}/fastgrow-gpu}"
usage="usage: bash run.sh OUT [EARLIER] [-- OPTIONS]"
out=${1:?$usage}; shift
earlier=
if [ $# -gt 0 ] && [ "$1" != -- ]; then earlier=$1; shift; fi
if [ $# -gt 0 ]; then
    [ "$1" = -- ] || { echo "$usage" >&2; exit 2; }
    shift
fi
bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ ! -d kernels ] || [ ! -d fastgrow ] || [ ! -d benchmarks ]; then
    echo "run.sh: $PWD is not the root of fastgrow's working tree; change to that folder first" >&2
    exit 2
fi
mkdir -p "$out" "$FASTGROW_WORK" || exit 2
out=$(cd "$out" && pwd)
work=$(cd "$FASTGROW_WORK" && pwd)
if [ -n "$earlier" ]; then cp -R --no-clobber "$earlier"/. "$out"/ || exit 2; fi
exec > >(tee -a "$out/log.txt") 2>&1
log=$!
echo "== $(date -u +%FT%TZ)"
cat "$bundle/bundle.json"

# Use a copy of the tree, so that the tree is not changed. In the copy, kernels/ is linked as
# fastgrow/kernels, so that it can be imported from any folder and process; an editable install would
# need a writable environment.
tree=$work/tree site=$work/site
rm -rf "$tree" "$site"
mkdir -p "$tree"
tar --create --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude=./runs \
    --exclude=./fastgrow/_build.json --exclude='*.so' --exclude=__pycache__ . |
    tar --extract --directory "$tree"
cp "$bundle"/native/* "$tree/fastgrow/"
ln -s ../kernels "$tree/fastgrow/kernels"
"$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --target "$site" "$bundle"/wheels/*.whl ||
    echo "run.sh: the wheels could not be installed; continuing without them"
export PYTHONPATH=$tree:$site PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor
cd "$tree" || exit 2

{
    "$PYTHON" --version
    "$PYTHON" -c "
import fastgrow._native as n, fastgrow.kernels.common, torch, triton
print('torch', torch.__version__, 'triton', triton.__version__, n.CPU, n.CUDA, sep='; ')"
    timeout 20 nvidia-smi
    nvcc --version
    "$PYTHON" -m pip list --format=freeze --disable-pip-version-check
} >"$out/environment.txt" 2>&1 &
facts=$!

# The time left, less four seconds for packing and six in which the suite may still end by itself.
left=$((LIMIT - SECONDS - 10))
if [ "$left" -lt 1 ]; then left=1; fi
echo "== set up in $SECONDS s; the suite has $left s"
timeout --kill-after=2 $((left + 6)) "$PYTHON" -m benchmarks gpu \
    --minutes "$(printf '%d.%02d' $((left / 60)) $((left % 60 * 100 / 60)))" \
    --out "$out" --substrate "$bundle/substrate" "$@"
status=$?
echo "== the suite ended with status $status after $SECONDS s"
wait "$facts"

# Leave at most eight files, none larger than 16 MiB: the suite's files, the two of this script, and
# an archive of all others.
cd "$out" || exit 2
known=(record.jsonl results.json results.csv results.png tuning.json log.txt environment.txt)
is_known() { local name; for name in "${known[@]}"; do [ "$1" = "$name" ] && return; done; return 1; }
rest=()
for entry in *; do is_known "$entry" || [ "$entry" = rest.tar.gz ] || rest+=("$entry"); done
if [ ${#rest[@]} -gt 0 ]; then
    tar --create --gzip --file rest.tar.gz -- "${rest[@]}" && rm -r -- "${rest[@]}"
fi
find . -type f -size +15M ! -name '*.gz' ! -name log.txt -exec gzip --force {} +
echo "== packed after $SECONDS s"; ls -l
exec >&- 2>&-
# A process that is still running would keep the log open, and block whoever waits for the output of
# this command.
for _ in {1..30}; do
    kill -0 "$log" 2>/dev/null || break
    sleep 0.1
done
kill "$log" 2>/dev/null
if [ "$(stat --format=%s log.txt)" -gt 15000000 ]; then
    tail --bytes=15000000 log.txt >log.end && mv log.end log.txt
fi
exit "$status"
