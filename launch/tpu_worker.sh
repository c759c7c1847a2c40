#!/usr/bin/env bash
# Set up dfkt once on a host of a TPU slice, then run it together with the other
# hosts. launch/tpu_pod.sh calls this on every host, with the same words.
#
#   bash launch/tpu_worker.sh [--dry-run] distill dfq --teacher t20 ...
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
if [ $# = 0 ]; then
  echo "tpu_worker.sh: the words of a dfkt command are missing, such as: distill dfq --teacher t20 ..." >&2
  exit 2
fi

step() {
  if [ -n "$dry_run" ]; then
    echo "${*@Q}"
  else
    "$@"
  fi
}

# .venv/ready is written only once everything is installed, so that an
# interrupted setup, or one with other dependencies, starts over. The Python of a
# TPU image may be too old: uv installs another.
wanted=$(cksum < pyproject.toml)
if [ "$(cat .venv/ready 2>/dev/null)" != "$wanted" ]; then
  step rm -rf .venv
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    step python3 -m venv .venv
    step .venv/bin/pip install -q -e . 'jax[tpu]'
  else
    step python3 -m pip install -q --user uv
    step python3 -m uv venv -q --python 3.12 .venv
    step python3 -m uv pip install -q --python .venv/bin/python -e . 'jax[tpu]'
  fi
  if [ -z "$dry_run" ]; then
    echo "$wanted" > .venv/ready
  fi
fi

step exec env DFKT_CLUSTER=1 .venv/bin/dfkt "$@"
