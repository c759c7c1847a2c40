"""Record what short runs of every method and command end with.

    python tests/golden.py record FILE     writes what the runs end with
    python tests/golden.py compare FILE    runs again and says what differs

Every run is of a fixed seed on one device in float32, on scikit-learn's digits,
and takes seconds. The record of a run is the sha256 of its final weights (or
files), `result.json` without times and `metrics.jsonl` without its clock. On
one kind of machine records are the same bit for bit; on another one the last
digits differ, so the record names the machine.
"""

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path
import sys
import tempfile

import numpy as np

TIMES = ("wall", "wall_seconds", "images_per_second", "device")
ENVIRONMENT = {
  "JAX_NUM_CPU_DEVICES": "1",
  "DFKT_COMPILATION_CACHE": "off",
  "XLA_FLAGS": (
    "--xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_multi_thread_eigen=false"
  ),
}

STUDENT = "--teacher teacher/network --student convnet-half --seed 3"
ROUNDS = f"{STUDENT} --eval-dataset digits/test --evaluations 2"
SHORT = f"{ROUNDS} --steps 8 --student-steps 4 --batch-size 32"
POOLED = f"{SHORT} --synthesis-batch-size 32 --synthesis-steps 4 --pool-size 96"
POOL = f"{SHORT} --pool npz:pool.npz --num-images 90 --pool-cache cache"
GAN = "--latent 8 --generator-widths 8 8 8"
TARGET = (
  "--source source/network --target npz:target.npz --pool-cache cache --seed 3"
  " --eval-dataset npz:labelled.npz --epochs 2 --steps 0 --batch-size 32"
)
DREAM = "--teacher teacher/network --synthesis-batch-size 8 --num-images 12"

RUNS = {
  "teacher": (
    "teacher train --arch convnet --dataset digits/train --eval-dataset"
    " digits/test --out teacher --steps 60 --batch-size 64 --crop-padding 1"
    " --flip False"
  ),
  "source": (
    "teacher train --recipe sfda --arch convnet-half+bottleneck --dataset"
    " digits/train --eval-dataset digits/test --out source --steps 60"
  ),
  "dfq": f"distill dfq {SHORT} --synthesis-batch-size 32 {GAN}",
  "dfq-warmup": (
    f"distill dfq {SHORT} --synthesis-batch-size 32 {GAN} --pool-size 96"
    " --warmup-rounds 1 --bn-form gaussian_kl --instance-form entropy"
  ),
  "noise": f"distill noise {SHORT} --loss l1",
  "noise-gaussian": f"distill noise {SHORT} --distribution gaussian",
  "deep-inversion": f"distill deep-inversion {POOLED}",
  "deep-inversion-stages": (
    f"distill deep-inversion {POOLED} --half-size-share 0.5 --image-schedule"
    " cosine --image-warmup 2 --micro-batch 16 --clip True"
    " --competition-weight 1"
  ),
  "soft-target": f"distill soft-target {POOLED}",
  "soft-target-shapes": (
    f"distill soft-target {POOLED} --start shapes --candidates 2 --draws 2"
    " --tv-weight 0.02 --sum-weight 0.005 --target stored"
  ),
  "zskd": f"distill zskd {POOLED} --pool-size 64",
  "random": f"distill random {POOL}",
  "dfnd": f"distill dfnd {POOL}",
  "odsd": f"distill odsd {POOL}",
  "mosaic-kd": f"distill mosaic-kd {POOL} {GAN} --discriminator-widths 8",
  "synthesize-apart": (
    f"synthesize deep-inversion {DREAM} --steps 6 --verifier source/network"
  ),
  "synthesize-soft": f"synthesize soft-target {DREAM} --steps 6",
  "synthesize-sequence": (
    f"synthesize dfq {DREAM} --steps 6 --adversarial-weight 0 {GAN}"
  ),
  "offline": (
    f"distill offline {ROUNDS} --steps 25 --batch-size 8"
    " --transfer-set tfds:synthesize-soft/dataset --target stored"
  ),
  "3c-gan": f"adapt 3c-gan {TARGET} {GAN} --discriminator-widths 4",
  "aad": f"adapt aad {TARGET}",
  "ada-bn": f"adapt ada-bn {TARGET}",
  "ada-contrast": f"adapt ada-contrast {TARGET} --queue-size 32",
  "cowa": f"adapt cowa {TARGET}",
  "cpga": f"adapt cpga {TARGET} --generator-steps 5 --generator-width 8",
  "dine": f"adapt dine {TARGET}",
  "notela": f"adapt notela {TARGET}",
  "notela-offline": f"adapt notela {TARGET} --online False",
  "nrc": f"adapt nrc {TARGET}",
  "sfda-de": f"adapt sfda-de {TARGET} --minimum-images 1",
  "sfit": f"adapt sfit {TARGET} --translator-width 4 --translator-blocks 1",
  "shot": f"adapt shot {TARGET} --oracle True",
  "shot-open": f"adapt shot {TARGET} --open-set True",
  "shot++": f"adapt shot++ {TARGET} --head-share 0.25 --transfer-share 0.5",
  "tent": f"adapt tent {TARGET} --oracle True",
  "tent-episodic": f"adapt tent {TARGET} --episodic True",
}
# Commands that end with a file and no workdir.
FILES = {
  "evaluate.json": (
    "evaluate dfq/student --dataset digits/test --teacher teacher/network"
    " --json evaluate.json"
  ),
  "student.pth": "export dfq/student --out student.pth --format pth",
  "student.safetensors": "export dfq/student --out student.safetensors",
}


def prepare(place: Path) -> None:
  """Write the pool and the target, digits drawn from fonts."""
  from dfkt_jax import data

  fonts, digits = data.load("fonts/train"), data.load("digits/test")
  np.savez(place / "pool.npz", images=digits.images[:120])
  target = {"images": fonts.images[:96], "labels": fonts.labels[:96]}
  np.savez(place / "target.npz", **target)
  np.savez(place / "labelled.npz", **target)


def run(place: Path, name: str) -> dict:
  """Run one command in `place` and return its record."""
  from dfkt_jax.cli import dispatch

  words = (RUNS | FILES)[name].split()
  if name in RUNS and "--out" not in words:
    words += ["--workdir", name]
  errors = io.StringIO()
  with (
    contextlib.chdir(place),
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(errors),
  ):
    try:
      dispatch.main(words)
    except SystemExit as stop:
      if stop.code:
        return {"failed": errors.getvalue()[-2000:]}
  if name in FILES:
    path = place / name
    if path.suffix == ".json":
      return {"result": json.loads(path.read_text())}
    return {"sha256": {name: _digest(path)}}
  return record(place / name)


def record(workdir: Path) -> dict:
  """Return what a finished workdir holds, without its times."""
  result = json.loads((workdir / "result.json").read_text())
  rows = [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  timeless = lambda row: {k: v for k, v in row.items() if k not in TIMES}
  weights = sorted(workdir.glob("*/*.safetensors"))
  return {
    "result": timeless(result),
    "metrics": [timeless(row) for row in rows],
    "sha256": {
      **{str(path.relative_to(workdir)): _digest(path) for path in weights},
      **_images(workdir),
    },
  }


def _images(workdir):
  """The images of a dataset; its bytes differ from run to run."""
  if not (workdir / "dataset").exists():
    return {}
  from dfkt_jax.data.examples import open_examples

  examples = open_examples(f"tfds:{workdir / 'dataset'}")
  digest = hashlib.sha256()
  for index in range(len(examples)):
    example = examples.example(index)
    for name in sorted(example):
      digest.update(name.encode() + np.asarray(example[name]).tobytes())
  return {"dataset": digest.hexdigest()}


def machine() -> str:
  """Return what decides the last digits: processor, JAX and its flags."""
  import jax

  flags = ""
  cpuinfo = Path("/proc/cpuinfo")
  if cpuinfo.exists():
    text = cpuinfo.read_text()
    flags = next((s for s in text.splitlines() if s.startswith("flags")), "")
  digest = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()
  return f"jax {jax.__version__}, processor {digest[:12]}"


def _digest(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(found: dict, expected: dict, exact: bool) -> list[str]:
  """Compare two records of a run.

  Figures that the expected record lacks are passed over.

  Args:
    exact: compare bit for bit; otherwise figures to a few digits, and no
      digests, which another machine cannot reproduce.

  Returns:
    What differs, one line a figure.
  """
  if "failed" in found:
    return [found["failed"]]
  lines = []
  if exact:
    for name, digest in expected.get("sha256", {}).items():
      if found["sha256"].get(name) != digest:
        lines.append(f"{name} has other bytes")
  pairs = [("result", expected.get("result", {}), found.get("result", {}))]
  pairs += [
    (f"step {row['step']}", row, other)
    for row, other in zip(expected.get("metrics", []), found.get("metrics", []))
  ]
  if len(expected.get("metrics", [])) != len(found.get("metrics", [])):
    lines.append("metrics.jsonl has another number of lines")
  for where, row, other in pairs:
    for name, value in row.items():
      now = other.get(name)
      same = now == value
      numbers = isinstance(value, float) and isinstance(now, float)
      if not exact and numbers:
        same = bool(np.isclose(now, value, rtol=0.05, atol=0.05))
      if not same:
        lines.append(f"{where}, {name}: {value} before, {now} now")
  return lines


def main(verb: str, file: str, *names: str) -> None:
  """Record or compare all runs, or the named ones with what they need."""
  needed = {*names, "teacher", "source"} if names else {*RUNS, *FILES}
  known = json.loads(Path(file).read_text()) if verb == "compare" else {}
  exact = known.get("machine") == machine()
  found, differing = {}, 0
  with tempfile.TemporaryDirectory(prefix="golden") as folder:
    place = Path(folder)
    prepare(place)
    for name in [*RUNS, *FILES]:
      if name not in needed:
        continue
      found[name] = run(place, name)
      lines = [found[name]["failed"]] if "failed" in found[name] else []
      if verb == "compare":
        lines = differences(found[name], known["runs"][name], exact)
      differing += bool(lines)
      sys.stdout.write("\n  ".join([f"{name}: {len(lines)} differ", *lines]))
      sys.stdout.write("\n")
      sys.stdout.flush()
  if verb == "record":
    text = json.dumps({"machine": machine(), "runs": found}, indent=1)
    Path(file).write_text(text + "\n")
  sys.exit(1 if differing else 0)


if __name__ == "__main__":
  # XLA reads its flags once, before it is imported.
  if any(os.environ.get(k) != v for k, v in ENVIRONMENT.items()):
    words = [sys.executable, __file__, *sys.argv[1:]]
    os.execve(sys.executable, words, {**os.environ, **ENVIRONMENT})
  main(*sys.argv[1:])
