#!/usr/bin/env bash
# Runs `lorage train` on every host of a Cloud TPU slice, from any machine with gcloud.
#
#   tools/pods/tpu_pod.sh install NAME ZONE                     copy this checkout and install it
#   tools/pods/tpu_pod.sh train NAME ZONE EXPERIMENT [OPTIONS]  start, or go on after a preemption
#   tools/pods/tpu_pod.sh log NAME ZONE                         the last lines of host 0
#   tools/pods/tpu_pod.sh stop NAME ZONE                        SIGTERM: the step is finished and saved
#
# TPU_PROJECT names the project, when it is not gcloud's own. What a `train` needs beside the
# checkout (models, data) must be at the same path on every host, checkpoints in one bucket:
#   tools/pods/tpu_pod.sh train pod us-west4-a experiments/real_smoke.py --checkpoints gs://bucket/run
set -euo pipefail

usage() { sed -n '4,7s/^# *//p' "$0" >&2; exit 2; }
[ $# -ge 3 ] || usage
action=$1 name=$2 zone=$3
shift 3
gcloud=(gcloud compute tpus tpu-vm)
where=("--zone=$zone" ${TPU_PROJECT:+"--project=$TPU_PROJECT"})
on() { "${gcloud[@]}" ssh "$name" "${where[@]}" "--worker=$1" --command="$2"; }

case $action in
install)
  root=$(cd "$(dirname "$0")/../.." && pwd)
  archive=$(mktemp -d)/lorage_jax.tar.gz
  git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  "${gcloud[@]}" scp "$archive" "$name":lorage_jax.tar.gz "${where[@]}" --worker=all
  on all 'mkdir -p lorage_jax && tar -xzf lorage_jax.tar.gz -C lorage_jax &&
    python3 -m venv lorage_env && lorage_env/bin/pip install -q -e "lorage_jax[tpu]" gcsfs'
  ;;
train)
  [ $# -ge 1 ] || usage
  # Quoted once more, for the shell over there.
  words=$(printf '%q ' "$@")
  on all "cd lorage_jax; nohup ../lorage_env/bin/lorage train $words --resume \
    > ../lorage.log 2>&1 < /dev/null & echo \$! > ../lorage.pid"
  ;;
log) on 0 'tail -n 20 lorage.log' ;;
stop) on all 'kill -TERM "$(cat lorage.pid)"' ;;
*) usage ;;
esac
