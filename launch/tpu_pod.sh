#!/usr/bin/env bash
# Start a run of dfkt on all hosts of a TPU slice.
#
#   bash launch/tpu_pod.sh NAME ZONE distill dfq --teacher t20 --student resnet20 \
#     --workdir /mnt/shared/runs/dfq
#   bash launch/tpu_pod.sh --stop NAME ZONE      makes the run save and stop
#   bash launch/tpu_pod.sh --dry-run ...         only prints the commands
#
# Needs gcloud and an existing TPU VM: NAME is the one given to
# `gcloud compute tpus tpu-vm create`. The committed code is copied to every
# host; all hosts have to see the workdir, teachers and data (an NFS share). The
# output of the hosts is printed here, so start this from a machine that stays
# on. After --stop, or when the slice was taken away and is available again, the
# same command resumes from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=""
stop=""
while [ "${1:-}" = --dry-run ] || [ "${1:-}" = --stop ]; do
  if [ "$1" = --stop ]; then stop=1; else dry_run=1; fi
  shift
done
if [ $# -lt 2 ] || { [ -z "$stop" ] && [ $# -lt 3 ]; }; then
  echo "tpu_pod.sh: expected NAME ZONE and the words of a dfkt command, such as: pod us-west4-a distill dfq --teacher t20 ..." >&2
  exit 2
fi
name=$1 zone=$2
shift 2

step() {
  if [ -n "$dry_run" ]; then
    echo "${*@Q}"
  else
    "$@"
  fi
}

on_all() {
  step gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="$1"
}

if [ -n "$stop" ]; then
  on_all "pkill -TERM -f '[.]venv/bin/dfkt'"
  exit 0
fi

# Results of code that is not committed could not be reproduced.
if [ -z "$dry_run" ] && [ -n "$(git status --porcelain --untracked-files=no)" ]; then
  echo "tpu_pod.sh: there are uncommitted changes, and only committed code is copied: commit them first" >&2
  exit 2
fi
archive=dfkt_jax-$(git rev-parse --short HEAD).tar.gz
step git archive --format=tar.gz --output="/tmp/$archive" HEAD
step gcloud compute tpus tpu-vm scp "/tmp/$archive" "$name:$archive" \
  --zone="$zone" --worker=all
# Files of an earlier commit are removed, except the environment.
on_all "mkdir -p dfkt_jax && find dfkt_jax -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + && tar -xzf $archive -C dfkt_jax && bash dfkt_jax/launch/tpu_worker.sh ${*@Q}"
