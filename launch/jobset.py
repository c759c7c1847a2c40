"""Start a run of dfkt on a TPU slice of a GKE cluster, as a Kubernetes JobSet.

COMMAND  python launch/jobset.py --name dfq --topology 4x4 --claim shared \
           --image REGISTRY/dfkt_jax:TAG -- distill dfq --teacher /shared/t20 \
           --student resnet20 --workdir /shared/runs/dfq

Fills in launch/jobset.yaml and passes it to `kubectl apply`. The image has dfkt
and jax[tpu] installed; --claim is a volume claim that all hosts may write to,
mounted at /shared. A run that is preempted, or loses a host, restarts by
itself; `kubectl delete jobset NAME` makes it save and stop. --dry-run prints
the manifest and the command.
"""

# ruff: noqa: T201 (a script prints its output)

import argparse
from collections.abc import Sequence
import json
import math
from pathlib import Path
import re
import shlex
import string
import subprocess
import sys

TEMPLATE = Path(__file__).with_name("jobset.yaml")
COMMAND = ["kubectl", "apply", "-f", "-"]


def main(argv: Sequence[str] | None = None) -> int:
  args = _parse(argv)
  manifest = render(args)
  if args.dry_run:
    print(manifest)
    print(f"# {shlex.join(COMMAND)}")
    return 0
  return subprocess.run(
    COMMAND, input=manifest, text=True, check=False
  ).returncode


def render(args: argparse.Namespace) -> str:
  """Return the manifest for parsed arguments."""
  chips = math.prod(map(int, args.topology.split("x")))
  quoted = {
    name: json.dumps(vars(args)[name])  # JSON is YAML
    for name in ("name", "accelerator", "topology", "image", "claim", "words")
  }
  return string.Template(TEMPLATE.read_text()).substitute(
    quoted,
    restarts=args.restarts,
    hosts=math.ceil(chips / args.chips_per_host),
    chips_per_host=min(chips, args.chips_per_host),
  )


def _parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--name", type=_name, required=True)
  add("--image", required=True)
  add("--claim", required=True, help="volume claim that all hosts may write to")
  add("--topology", type=_topology, default="4x4", help="chips, such as 16x16")
  add("--accelerator", default="tpu-v5-lite-podslice")
  add("--chips-per-host", type=int, choices=(1, 4, 8), default=4)
  add("--restarts", type=int, default=100)
  add("--dry-run", action="store_true", help="print the manifest only")
  add("words", nargs="+", help="words of a dfkt command, after --")
  return parser.parse_args(argv)


def _name(text):
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a name for Kubernetes: give at most 40 lowercase"
      " letters, digits and -, beginning with a letter"
    )
  return text


def _topology(text):
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a topology: give chips along each axis, such as 4x4"
    )
  return text


if __name__ == "__main__":
  sys.exit(main())
