"""Launch scripts: the commands they run, and their exit codes."""

import importlib.util
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys

import pytest

from tests import assets

LAUNCH = Path(__file__).parents[2] / "launch"
WORDS = ("distill", "dfq", "--teacher", "/shared/a b", "--workdir", "/shared/r")
SHELL = ("slurm.sbatch", "tpu_pod.sh", "tpu_worker.sh")


def bash(script, *words, path=None, **environment):
  return subprocess.run(
    ["bash", str(LAUNCH / script), *words],
    env={**os.environ, "PATH": path or os.environ["PATH"], **environment},
    capture_output=True,
    text=True,
    check=False,
  )


def module(name):
  spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


@pytest.fixture
def fake(tmp_path):
  """Return fake(name, exit code), which makes a command that logs its calls."""
  folder = tmp_path / "bin"
  folder.mkdir()

  def make(name, code=0):
    script = folder / name
    log = shlex.quote(str(tmp_path / "calls"))
    script.write_text(
      "#!/usr/bin/env bash\n"
      f'echo "{name} ${{DFKT_CLUSTER:-}} ${{*@Q}}" >> {log}\nexit {code}\n'
    )
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"

  make.calls = lambda: (tmp_path / "calls").read_text().splitlines()
  return make


@pytest.mark.parametrize("script", SHELL)
def test_shellcheck_finds_nothing(script):
  beside = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
  command = beside or shutil.which("shellcheck")
  if command is None:
    assets.absent("shellcheck is not installed")
  done = subprocess.run(
    [command, str(LAUNCH / script)], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SHELL)
def test_missing_words_are_refused(script):
  done = bash(script)
  assert done.returncode == 2
  assert done.stderr.startswith(f"{script}: ")
  assert done.stderr.count("\n") == 1


def test_slurm_prints_the_command():
  done = bash("slurm.sbatch", "--dry-run", *WORDS, DFKT="/bin/true")
  command = shlex.split(done.stdout)
  assert command[:3] == ["env", "DFKT_CLUSTER=1", "srun"]
  assert command[-len(WORDS) - 1 :] == ["/bin/true", *WORDS]


@pytest.mark.parametrize("code", [0, 1, 75])
def test_slurm_requeues_a_preempted_run(fake, code):
  fake("srun", code)
  path = fake("scontrol")
  done = bash("slurm.sbatch", *WORDS, path=path, SLURM_JOB_ID="7")
  assert done.returncode == code
  calls = fake.calls()
  assert calls[0].startswith("srun 1 ")
  assert calls[1:] == (["scontrol 1 'requeue' '7'"] if code == 75 else [])


def test_a_tpu_host_installs_once_and_joins_the_others(fake, tmp_path):
  done = bash("tpu_worker.sh", "--dry-run", *WORDS)
  lines = [shlex.split(line) for line in done.stdout.splitlines()]
  assert lines[-1] == [
    "exec",
    "env",
    "DFKT_CLUSTER=1",
    ".venv/bin/dfkt",
    *WORDS,
  ]
  assert any("jax[tpu]" in line for line in lines)
  # Once set up, only the run is left.
  home = tmp_path / "home"
  (home / "launch").mkdir(parents=True)
  (home / ".venv").mkdir()
  shutil.copy(LAUNCH / "tpu_worker.sh", home / "launch")
  shutil.copy(LAUNCH.parent / "pyproject.toml", home)
  ready = home / ".venv" / "ready"
  with open(home / "pyproject.toml") as wanted, open(ready, "w") as mark:
    subprocess.run(["cksum"], stdin=wanted, stdout=mark, check=True)
  script = str(home / "launch" / "tpu_worker.sh")

  def again():
    words = ["bash", script, "--dry-run", *WORDS]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]

  assert again() == lines[-1:]
  # A commit with other dependencies.
  with open(home / "pyproject.toml", "a") as file:
    file.write("# another dependency\n")
  assert again() == lines


def test_a_pod_gets_the_committed_code_and_the_words_unchanged():
  done = bash("tpu_pod.sh", "--dry-run", "pod", "us-west4-a", *WORDS)
  archive, copy, run = (shlex.split(line) for line in done.stdout.splitlines())
  assert archive[:2] == ["git", "archive"]
  assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
  assert "--worker=all" in copy
  assert "--worker=all" in run
  (remote,) = (word for word in run if word.startswith("--command="))
  words = shlex.split(remote.removeprefix("--command="))
  assert words[-len(WORDS) :] == list(WORDS)
  assert words[-len(WORDS) - 1].endswith("launch/tpu_worker.sh")


def test_all_hosts_of_a_pod_are_stopped():
  done = bash("tpu_pod.sh", "--stop", "--dry-run", "pod", "us-west4-a")
  (line,) = done.stdout.splitlines()
  assert "--worker=all" in shlex.split(line)
  assert "pkill -TERM" in line


def manifest(*flags):
  jobset = module("jobset")
  yaml = assets.package("yaml")
  args = jobset._parse(
    [
      *("--name", "dfq", "--image", "x/y:z", "--claim", "c", *flags),
      *("--", *WORDS),
    ]
  )
  return yaml.safe_load(jobset.render(args))


def test_a_jobset_holds_the_words_and_the_hosts():
  found = manifest("--topology", "16x16")
  (job,) = found["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  (container,) = spec["template"]["spec"]["containers"]
  assert container["args"] == list(WORDS)
  assert spec["parallelism"] == spec["completions"] == 64  # of four chips
  (alone,) = manifest("--topology", "1x1")["spec"]["replicatedJobs"]
  spec = alone["template"]["spec"]
  (container,) = spec["template"]["spec"]["containers"]
  assert spec["parallelism"] == 1
  assert container["resources"]["limits"] == {"google.com/tpu": 1}


def test_kubernetes_accepts_the_job_in_a_jobset():
  validate = assets.package("kubernetes_validate")
  (job,) = manifest()["spec"]["replicatedJobs"]
  as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
  whole = {**as_job, "spec": job["template"]["spec"]}
  validate.validate(whole, "1.33", strict=True)
  whole["spec"]["paralelism"] = 2
  with pytest.raises(validate.ValidationError):
    validate.validate(whole, "1.33", strict=True)


def closed(required=(), **properties):
  """Return the schema of an object with these properties only."""
  return {
    "type": "object",
    "properties": properties,
    "required": list(required),
    "additionalProperties": False,
  }


TEXT, WHOLE, TRUTH = ({"type": t} for t in ("string", "integer", "boolean"))
TEXTS = {"type": "array", "items": TEXT}
# The fields of a JobSet, after the definition that its project
# publishes (kubernetes-sigs/jobset, jobset.x-k8s.io_jobsets.yaml, v1alpha2).
RULE = closed(
  ("action", "name"),
  name={
    "type": "string",
    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
  },
  action={
    "enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
  },
  onJobFailureReasons=TEXTS,
  targetReplicatedJobs=TEXTS,
)
JOBSET = closed(
  ("apiVersion", "kind", "metadata", "spec"),
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=closed(("name",), name=TEXT, annotations={"type": "object"}),
  spec=closed(
    ("replicatedJobs",),
    network=closed(
      enableDNSHostnames=TRUTH, publishNotReadyAddresses=TRUTH, subdomain=TEXT
    ),
    failurePolicy=closed(
      maxRestarts=WHOLE,
      restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
      rules={"type": "array", "items": RULE},
    ),
    replicatedJobs={
      "type": "array",
      "items": closed(
        ("name", "template"),
        name=TEXT,
        replicas=WHOLE,
        template=closed(("spec",), metadata={}, spec={"type": "object"}),
      ),
    },
  ),
)


def test_a_jobset_is_valid():
  jsonschema = assets.package("jsonschema")
  found = manifest()
  jsonschema.validate(found, JOBSET)
  found["spec"]["failurePolicy"]["maxRestart"] = 3
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(found, JOBSET)


@pytest.mark.parametrize(
  "flags", [("--name", "Upper"), ("--topology", "4by4"), ("--topology", "0x4")]
)
def test_flags_of_an_impossible_jobset_are_refused(flags, capsys):
  with pytest.raises(SystemExit) as stop:
    manifest(*flags)
  assert stop.value.code == 2
  assert flags[1] in capsys.readouterr().err
