"""The contract of cost: no hidden L x L, and the declared exponents."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxattn
from tests import jaxpr_walker
from tests.method_cases import for_every
from tests.method_cases import METHODS

_SHAPES = jaxattn.AttentionShapes(num_heads=1, head_dim=64)


def _method(name):
  """The method of a case, for one head."""
  case = METHODS[name]
  return case.method if case.one_head is None else case.one_head


def _masks(name, length):
  """FULL and CAUSAL where served, and one with all arrays set."""
  method = _method(name)
  yield jaxattn.FULL
  causal = method.causality != "none"
  if causal:
    yield jaxattn.CAUSAL
  fields = {}
  for field in method.honours - {"causal"}:
    dtype = bool if field.endswith("valid") else jnp.int32
    if causal or not field.endswith("positions"):
      fields[field] = jnp.ones((1, length), dtype)
  yield jaxattn.Mask(causal=causal, **fields)


def _gradient(name):
  """A function of query, key, value and mask: output and all gradients."""
  method = _method(name)

  def run(params, state, q, k, v, mask):
    def attend(params, q, k, v):
      return method.apply(params, state, q, k, v, mask=mask)[0]

    out, vjp = jax.vjp(attend, params, q, k, v)
    return out, vjp(out)

  return run


@functools.cache
def _arguments(name, length):
  params, state = jax.eval_shape(
    lambda rng: _method(name).init(rng, _SHAPES), jax.random.key(0)
  )
  x = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)
  return params, state, x, x, x


def _trace(name, length, mask):
  return jax.make_jaxpr(_gradient(name))(*_arguments(name, length), mask)


@for_every
def test_no_intermediate_of_length_squared(name):
  """Forward and gradient, down to the bodies of loops, at length 4096."""
  if _method(name).memory_exponent >= 2:
    pytest.skip("declares quadratic memory")
  for mask in _masks(name, 4096):
    closed = _trace(name, 4096, mask)
    jaxpr_walker.assert_no_intermediate(closed, at_least=4096**2)


@for_every
def test_flops_grow_as_declared(name):
  """Over 2048, 4096 and 8192; 0.1 is for what the edges of the tiles add."""
  lengths = [2048, 4096, 8192]
  for kind in range(2):
    flops = []
    for length in lengths:
      mask = list(_masks(name, length))[kind]
      flops.append(jaxpr_walker.matmul_flops(_trace(name, length, mask)))
    exponent = jaxpr_walker.growth(lengths, flops)
    assert exponent < _method(name).time_exponent + 0.1, flops
    # All products are there: at least the scores of every query's own tile.
    assert flops[-1] > 8192 * 64


@for_every
def test_temporary_memory_grows_as_declared(name):
  """What XLA allocates beyond arguments and results, forward and gradient."""
  lengths = [1024, 2048, 4096]
  temporary = []
  for length in lengths:
    arguments = (*_arguments(name, length), jaxattn.FULL)
    compiled = jax.jit(_gradient(name)).lower(*arguments).compile()
    temporary.append(compiled.memory_analysis().temp_size_in_bytes)
  exponent = jaxpr_walker.growth(lengths, temporary)
  assert exponent < _method(name).memory_exponent + 0.2, temporary
