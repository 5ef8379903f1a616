"""The contract of decoding: a cache gives what the parallel form gives."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from tests import method_cases as cases
from tests.method_cases import assert_close
from tests.method_cases import assert_zero
from tests.method_cases import for_every
from tests.method_cases import METHODS


def _decodes(name):
  """Whether the method decodes; if not, checks the refusal."""
  method = METHODS[name].method
  if method.causality == "strict":
    return True
  with pytest.raises(NotImplementedError, match="strict"):
    _cache(name)
  return False


def _cache(name, *, batch=cases.BATCH, max_length=cases.LENGTH, **changes):
  params, state = cases.variables(name)
  return METHODS[name].method.init_cache(
      params, state, batch_shape=(batch,), max_length=max_length,
      shapes=cases.shapes(**changes),
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("method",))
def _extend(method, params, state, cache, qkv, key_valid):
  return method.extend(params, state, cache, *qkv, key_valid=key_valid)


def _grow(name, cache, qkv, key_valid=None):
  params, state = cases.variables(name)
  return _extend(
    METHODS[name].method, params, state, cache, tuple(qkv), key_valid
  )


def _parallel(name, qkv):
  return cases.pull(name, qkv, jaxattn.CAUSAL)[0]


@for_every
@pytest.mark.parametrize(
  "chunks", [(1,) * 10, (5, 1, 1, 1, 1, 1), (3, 4, 13, 1, 3), (41,), (33, 8)]
)
def test_equals_the_parallel_form(name, chunks):
  """Prefill and steps, in chunks shorter and longer than the window.

  1e-5 relative to the largest entry: the order of the sums differs.
  """
  if not _decodes(name):
    return
  qkv = cases.draw(20)
  want, cache, start = _parallel(name, qkv), _cache(name), 0
  for size in chunks:
    part = [x[:, start : start + size] for x in qkv]
    out, cache = _grow(name, cache, part)
    assert_close(out, want[:, start : start + size], 1e-5)
    start += size
  assert cache["length"].tolist() == [start] * cases.BATCH


@for_every
def test_rows_of_unequal_length(name):
  """Right-padded prompts; the padding is loud and leaves no trace."""
  if not _decodes(name):
    return
  qkv = cases.draw(21)
  want, cache = _parallel(name, qkv), _cache(name)
  done = np.zeros(cases.BATCH, int)
  for counts, width in (((9, 3), 9), ((0, 4), 4), ((1, 1), 1), ((4, 2), 4)):
    counts = np.array(counts)
    index = np.minimum(done[:, None] + np.arange(width), cases.LENGTH - 1)
    valid = np.arange(width) < counts[:, None]
    loud = jnp.where(jnp.asarray(valid)[..., None, None], 0.0, 100.0)
    rows = np.arange(cases.BATCH)[:, None]
    part = [x[rows, index] + loud for x in qkv]
    out, cache = _grow(name, cache, part, jnp.asarray(valid))
    assert_close(out[valid], want[rows, index][valid], 1e-5)
    assert_zero(out[~valid])
    done += counts
    assert cache["length"].tolist() == done.tolist()


@for_every
def test_take_follows_the_rows(name):
  if not _decodes(name):
    return
  qkv = cases.draw(22)
  _, cache = _grow(name, _cache(name), [x[:, :9] for x in qkv])
  rows = jnp.array([1, 1, 0])
  taken = jaxattn.take(cache, rows)
  chosen = [x[rows] for x in qkv]
  out, _ = _grow(name, taken, [x[:, 9:13] for x in chosen])
  want = _parallel(name, qkv)[rows][:, 9:13]
  assert_close(out, want, 1e-5)
  assert np.abs(want[0] - want[2]).max() > 1e-2  # Else nothing is shown.


@for_every
def test_batch_axes_are_any(name):
  """A cache with two leading axes, and with none under vmap."""
  if not _decodes(name):
    return
  params, state = cases.variables(name)
  method, qkv = METHODS[name].method, [x[:, :6] for x in cases.draw(23)]
  want, _ = _grow(name, _cache(name), qkv)

  def init(batch_shape):
    return method.init_cache(
        params, state, batch_shape=batch_shape, max_length=cases.LENGTH,
        shapes=cases.shapes(),
    )  # fmt: skip

  two = [x[:, None] for x in qkv]
  out, _ = _grow(name, init((cases.BATCH, 1)), two)
  assert_close(out[:, 0], want, 1e-6)
  out, _ = jax.jit(jax.vmap(lambda *x: _grow(name, init(()), x)))(*qkv)
  assert_close(out, want, 1e-6)


@for_every
def test_one_trace_for_all_steps(name):
  if not _decodes(name):
    return
  chex.clear_trace_counter()
  params, state = cases.variables(name)
  method, cache = METHODS[name].method, _cache(name)

  @jax.jit
  @chex.assert_max_traces(n=1)
  def step(cache, qkv):
    return method.extend(params, state, cache, *qkv)

  for t in range(3):
    qkv = [x[:, t : t + 1] for x in cases.draw(24)]
    _, cache = step(cache, qkv)


@for_every
def test_cache_is_abstract_keeps_dtype_and_fits_the_method(name):
  """A linear-time method decodes in constant memory, unless it says so."""
  if not _decodes(name):
    return
  method, bytes_of = METHODS[name].method, []
  longest = getattr(method, "max_length", 8192)
  for length in (longest // 2, longest):
    cache = jax.eval_shape(
      lambda length=length: _cache(name, max_length=length, dtype=jnp.bfloat16)
    )
    for leaf in jax.tree.leaves(cache):
      assert leaf.shape[0] == cases.BATCH
      kept = (jnp.int32, jnp.bfloat16)
      kept += (jnp.float32,) if METHODS[name].sums else ()
      assert leaf.dtype in kept
    leaves = jax.tree.leaves(cache)
    bytes_of.append(sum(x.size * x.dtype.itemsize for x in leaves))
  grown = bytes_of[1] / bytes_of[0]
  constant = method.time_exponent <= 1 and not METHODS[name].keeps_all
  assert grown == 1 if constant else grown <= 2


@for_every
def test_bfloat16_cache(name):
  """Keys and values rounded to bfloat16 give the float32 result to 2e-2."""
  if not _decodes(name):
    return
  qkv = [x[:, :9].astype(jnp.bfloat16) for x in cases.draw(25)]
  cache = _cache(name, dtype=jnp.bfloat16)
  out, cache = _grow(name, cache, [x[:, :8] for x in qkv])
  last, _ = _grow(name, cache, [x[:, 8:] for x in qkv])
  assert out.dtype == last.dtype == jnp.bfloat16
  full = [
    jnp.pad(
      x.astype(jnp.float32), ((0, 0), (0, cases.LENGTH - 9), (0, 0), (0, 0))
    )
    for x in qkv
  ]
  want = _parallel(name, full)[:, :9]
  assert_close(jnp.concatenate([out, last], axis=1), want, 2e-2)
