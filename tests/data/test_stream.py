"""Streams: every example once per epoch, and an exact position on resuming."""

import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from dfkt_jax.data import builder, tfds_source
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.data.stream import Stream
from dfkt_jax.errors import UsageError
from tests.ports import free_port

NUMBERS = np.arange(10)


def take(stream, count):
  return [np.asarray(next(stream)) for _ in range(count)]


def test_every_epoch_has_every_example_once_in_another_order():
  with Stream(NUMBERS, 5, seed=3) as stream:
    epochs = [np.concatenate(take(stream, 2)) for _ in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == NUMBERS.tolist()
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_reach_into_the_next_epoch():
  with Stream(NUMBERS, 4, seed=0) as stream:
    drawn = np.concatenate(take(stream, 5))
  assert sorted(drawn) == sorted([*range(10)] * 2)


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_may_have_one_example(shuffle):
  with Stream(NUMBERS, 1, seed=3, shuffle=shuffle) as stream:
    drawn = np.concatenate(take(stream, 20))
  assert sorted(drawn[:10]) == sorted(drawn[10:]) == NUMBERS.tolist()
  assert (drawn[:10] != drawn[10:]).any() == shuffle


def test_a_stream_resumes_with_the_next_example():
  with Stream(NUMBERS, 4, seed=1) as stream:
    take(stream, 3)
    state = stream.state
    expected = take(stream, 4)
  with Stream(NUMBERS, 4, seed=1) as stream:
    stream.restore(state)
    np.testing.assert_array_equal(take(stream, 4), expected)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_global_batch_does_not_depend_on_the_processes(processes):
  with Stream(NUMBERS, 8, seed=5) as stream:
    expected = take(stream, 3)
  shards = []
  for process in range(processes):
    with Stream(
      NUMBERS, 8, seed=5, process=process, processes=processes
    ) as stream:
      shards.append(take(stream, 3))
  joined = [np.concatenate(batch) for batch in zip(*shards)]
  np.testing.assert_array_equal(joined, expected)


def test_one_epoch_ends_with_a_smaller_batch():
  options = {"shuffle": False, "epochs": 1}
  with Stream(NUMBERS, 4, **options) as stream:
    batches = [batch.tolist() for batch in stream]
  assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_every_example_of_an_epoch(processes):
  options = {"shuffle": False, "epochs": 1, "processes": processes}
  seen, lengths = [], set()
  for process in range(processes):
    with Stream(NUMBERS[:9], 4, process=process, **options) as stream:
      batches = list(stream)
    lengths.add(len(batches))
    seen += np.concatenate(batches).tolist()
  # Every process takes part in every batch, even with 0 examples.
  assert lengths == {3}
  assert sorted(seen) == list(range(9))


def test_an_error_of_the_source_is_raised_unchanged():
  class Broken:
    def __len__(self):
      return 4

    def __getitem__(self, index):
      raise UsageError("one sentence")

  with (
    Stream(Broken(), 2) as stream,
    pytest.raises(UsageError, match=r"^one sentence$"),
  ):
    next(stream)


def test_trees_are_stacked_leaf_by_leaf():
  class Pairs:
    def __len__(self):
      return 4

    def __getitem__(self, index):
      return {"image": np.full((2, 2), index, np.uint8), "label": index}

  with Stream(Pairs(), 3, shuffle=False) as stream:
    batch = next(stream)
  assert batch["image"].shape == (3, 2, 2)
  assert batch["image"].dtype == np.uint8
  assert batch["label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
  ("numbers", "batch", "processes"),
  [([], 2, 1), (NUMBERS, 0, 1), (NUMBERS, 3, 2)],
)
def test_batches_that_do_not_divide_evenly_are_refused(
  numbers, batch, processes
):
  with pytest.raises(UsageError, match="--batch-size"):
    Stream(numbers, batch, process=0, processes=processes)


_READER = """
import sys
import jax
process = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=process)
from dfkt_jax.data import tfds_source
from dfkt_jax.data.stream import Stream
source = tfds_source.open_split(sys.argv[3], "train")
with Stream(source, 8, epochs=1) as stream:
  images = [image for batch in stream for image in batch["image"]]
print("read", *(int(image[0, 0, 0]) for image in images))

from dfkt_jax.data.stream import put
from dfkt_jax.devices.mesh import make_mesh
mesh = make_mesh()
with Stream(source, 8, seed=4) as stream:
  whole = put(next(stream)["image"], mesh)
local = [shard.data[:, 0, 0, 0].tolist() for shard in whole.addressable_shards]
print("shape", whole.shape)
print("batch", *sum(local, []))
"""


def test_two_processes_read_every_example_of_a_tfds_dataset_once(tmp_path):
  images = np.zeros((37, 4, 4, 1), np.uint8)
  images[:, 0, 0, 0] = np.arange(37)
  dataset = Dataset("numbers", images, np.arange(37, dtype=np.int32) % 3)
  folder = builder.write("numbers", {"train": dataset}, tmp_path)
  address = f"127.0.0.1:{free_port()}"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  environment["PYTHONPATH"] = str(Path(__file__).parents[2])
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", _READER, address, str(number), str(folder)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=environment,
      text=True,
    )
    for number in range(2)
  ]
  found, batch = [], []
  for process in processes:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = dict(line.split(" ", 1) for line in out.splitlines() if " " in line)
    found.append([int(word) for word in lines["read"].split()])
    batch += [int(word) for word in lines["batch"].split()]
    assert lines["shape"] == "(8, 4, 4, 1)"
  assert sorted(found[0] + found[1]) == list(range(37))
  assert min(map(len, found)) >= 15
  source = tfds_source.open_split(str(folder), "train")
  with Stream(source, 8, seed=4) as stream:
    assert batch == next(stream)["image"][:, 0, 0, 0].tolist()
