"""Loops and conditionals, rolled as on accelerators and unrolled as on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.devices.loops import Loops, cond, scan


def body(carry, index, factor):
  carry = carry + factor * index
  return carry, {"carry": carry}


@pytest.mark.parametrize("rolled", [False, True])
def test_repeat_is_a_loop(rolled):
  repeat = Loops(rolled).jit_round(Loops(rolled).repeat(body, 4))
  carry, infos = repeat(jnp.float32(1.0), 3, 2.0)
  expected = 1.0 + 2.0 * np.cumsum([3, 4, 5, 6])
  assert carry == expected[-1]
  np.testing.assert_array_equal(infos["carry"], expected)


@pytest.mark.parametrize("rolled", [False, True])
def test_the_carry_is_donated(rolled):
  repeat = Loops(rolled).jit_round(Loops(rolled).repeat(body, 2))
  carry = jnp.zeros(1024)
  repeat(carry, 0, 1.0)
  assert carry.is_deleted()


@pytest.mark.parametrize("rolled", [False, True])
def test_a_chain_goes_on_from_body_to_body(rolled):
  loops = Loops(rolled)
  halved = lambda carry, index, factor: body(carry, index, factor / 2)
  chain = loops.jit_round(loops.chain([(body, 2), (halved, 3)]))
  carry, infos = chain(jnp.float32(1.0), 3, 2.0)
  expected = 1.0 + np.cumsum([6, 8, 5, 6, 7])
  assert carry == expected[-1]
  np.testing.assert_array_equal(infos["carry"], expected)


@pytest.mark.parametrize("backend", ["cpu", "accelerator"])
def test_scan_is_that_of_lax(monkeypatch, backend):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  parts = {"x": jnp.arange(12.0).reshape(4, 3), "weight": jnp.arange(4)}

  def step(carry, part):
    weighted = part["x"] * part["weight"]
    return carry + weighted.sum(), weighted

  run = lambda carry, parts: scan(step, carry, parts)
  assert ("scan" in str(jax.make_jaxpr(run)(0.0, parts))) == (backend != "cpu")
  carry, outs = jax.jit(run)(jnp.float32(1.0), parts)
  expected = np.arange(12.0).reshape(4, 3) * np.arange(4)[:, None]
  np.testing.assert_array_equal(outs, expected)
  assert carry == 1.0 + expected.sum()


def test_scan_ignores_numbers_that_are_not_finite():
  parts = jnp.array([[jnp.inf, 1.0], [2.0, jnp.nan], [3.0, 4.0]])
  _, outs = jax.jit(lambda x: scan(lambda c, x: (c, 2 * x), (), x))(parts)
  np.testing.assert_array_equal(outs[1:], 2 * parts[1:])


def test_a_loop_is_a_scan_except_on_cpu():
  assert Loops.for_backend().rolled == (jax.default_backend() != "cpu")


def test_one_compilation_serves_all_indices():
  for rolled in (False, True):
    count = 0

    def counted(carry, index, factor):
      nonlocal count
      count += 1
      return body(carry, index, factor)

    loops = Loops(rolled)
    repeat = loops.jit_round(loops.repeat(counted, 3))
    carry = jnp.float32(0.0)
    for start in (0, 3, 6):
      carry, _ = repeat(carry, start, 1.0)
    assert count == 1


@pytest.mark.parametrize("backend", ["cpu", "accelerator"])
def test_cond_computes_or_leaves_alone(monkeypatch, backend):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  double = lambda x: {"x": 2.0 * x, "found": jnp.int32(7)}
  idle = {"x": jnp.array([5.0, jnp.nan]), "found": jnp.int32(0)}
  x = jnp.array([1.0, 2.0])
  choose = lambda holds: cond(holds, double, idle, x)
  jaxpr = str(jax.make_jaxpr(choose)(True))
  assert ("cond" in jaxpr) == (backend != "cpu")
  done, left = (jax.jit(choose)(holds) for holds in (True, False))
  np.testing.assert_array_equal(done["x"], [2.0, 4.0])
  np.testing.assert_array_equal(left["x"], idle["x"])
  assert (done["found"], left["found"]) == (7, 0)
