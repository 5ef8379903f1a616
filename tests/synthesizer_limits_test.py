"""Synthesizer: lengths, memory, decoding and options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from tests import jaxpr_walker
from tests import synthesizer_cases as cases
from tests.method_cases import assert_close
from tests.method_cases import assert_zero


@pytest.fixture
def _small_blocks(monkeypatch):
  cases.cut_small(monkeypatch)
  yield
  cases.pull.clear_cache()


@pytest.mark.usefixtures("_small_blocks")
def test_a_causal_prefix_is_what_it_is_alone():
  method, qkv = cases.EQUATIONS["all"], cases.draw(13)
  params, state = cases.variables(method)
  whole, _ = method.apply(params, state, *qkv, mask=jaxattn.CAUSAL)
  for n in (1, 5, 12):
    part = tuple(x[:, :n] for x in qkv)
    out, _ = method.apply(params, state, *part, mask=jaxattn.CAUSAL)
    assert_close(out, whole[:, :n])


def test_too_long_is_refused():
  method = cases.make("random")
  params, state = cases.variables(method)
  for lengths, name in (((18, 17), "query"), ((17, 18), "key")):
    with pytest.raises(ValueError, match=f"{name} has 18.*max_length = 17"):
      method.apply(params, state, *cases.draw(0, *lengths))
  with pytest.raises(ValueError, match="cache has 18.*larger max_length"):
    method.init_cache(
      params, state, batch_shape=(1,), max_length=18, shapes=cases.SHAPES
    )


def test_random_logits_are_not_copied_for_the_batch():
  """Nothing in the gradient is larger than the matrix itself."""
  batch, length = 32, 1024
  method = jaxattn.synthesizer(max_length=length)
  shapes = jaxattn.AttentionShapes(num_heads=1, head_dim=16)
  params, _ = jax.eval_shape(
    lambda rng: method.init(rng, shapes), jax.random.key(0)
  )
  x = jax.ShapeDtypeStruct((batch, length, 1, 16), jnp.float32)

  def run(params, q, k, v):
    out, vjp = jax.vjp(
      lambda *x: method.apply(x[0], (), *x[1:], mask=jaxattn.CAUSAL)[0],
      params,
      q,
      k,
      v,
    )
    return vjp(out)

  closed = jax.make_jaxpr(run)(params, x, x, x)
  jaxpr_walker.assert_no_intermediate(closed, at_least=length**2 + 1)


def _cache(method, params, state, size=cases.LENGTH, batch=cases.BATCH):
  return method.init_cache(
    params, state, batch_shape=(batch,), max_length=size, shapes=cases.SHAPES
  )


@pytest.mark.usefixtures("_small_blocks")
def test_decoding_in_blocks_equals_the_parallel_form():
  """A prefill of eleven tokens is three blocks of rows, and then steps."""
  method, (query, key, value) = cases.EQUATIONS["all"], cases.draw(14)
  params, state = cases.variables(method)
  want, _ = method.apply(params, state, query, key, value, mask=jaxattn.CAUSAL)
  cache, start = _cache(method, params, state), 0
  for n in (11, 1, 1):
    part = [x[:, start : start + n] for x in (query, key, value)]
    out, cache = method.extend(params, state, cache, *part)
    assert_close(out, want[:, start : start + n])
    start += n


def test_cache_holds_keys_only_where_they_are_read():
  for parts, names in (
    (("random", "dense"), {"value", "length"}),
    (("random", "dot_product"), {"key", "value", "length"}),
  ):
    method = cases.make(*parts)
    assert set(_cache(method, (), ())) == names


def test_a_row_that_outgrows_its_cache_is_not_silent():
  method = cases.make("random")
  params, state = cases.variables(method)
  query, key, value = cases.draw(15)
  cache = _cache(method, params, state, size=6)
  counts = jnp.array([[7], [6]])
  valid = jnp.arange(8)[None] < counts
  part = [x[:, :8] for x in (query, key, value)]
  out, cache = method.extend(params, state, cache, *part, key_valid=valid)
  want, _ = method.apply(params, state, query, key, value, mask=jaxattn.CAUSAL)
  assert np.isnan(out[0, :7]).all()
  assert_zero(out[0, 7:], out[1, 6:])
  assert_close(out[1, :6], want[1, :6])
  step = [x[:, 8:9] for x in (query, key, value)]
  out, _ = method.extend(params, state, cache, *step)
  assert np.isnan(out).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"max_length": 0}, "max_length must be at least 1"),
    ({"parts": ()}, "different names"),
    ({"parts": ("random", "random")}, "different names"),
    ({"parts": ("vanilla",)}, "different names out of .*dot_product"),
    ({"parts": "random"}, "tuple of different names"),
    ({"mixing": "sigmoid"}, "mixing must be in"),
    ({"rank": 4}, "rank serves factorized_random, none"),
    ({"factors": (4, 4)}, "factors serves factorized_dense"),
    ({"parts": ("dense",), "stddev": 1.0}, "stddev serves random"),
    ({"share_heads": True}, "share_heads serves dense"),
    ({"stddev": -1.0}, "stddev must not be negative"),
    ({"parts": ("factorized_random",), "rank": 0}, "rank must be at least 1"),
    ({"parts": ("factorized_dense",), "factors": (4, 3)}, "16 pairs or more"),
    ({"parts": ("factorized_dense",), "factors": (16,)}, "two sizes"),
  ],
)
def test_options_are_checked(options, message):
  with pytest.raises(ValueError, match=message):
    jaxattn.synthesizer(**{"max_length": 16, **options})


def test_defaults_are_values():
  """An option left out equals its default."""
  assert cases.make("factorized_random") == cases.make(
    "factorized_random", rank=8
  )
  near = cases.make("factorized_dense")
  assert near.factors == (5, 4)
  assert near == cases.make("factorized_dense", factors=(5, 4))
  assert cases.make("random") == cases.make(
    "random", stddev=cases.LONGEST**-0.5
  )
  assert jaxattn.synthesizer(max_length=4, parts=["dense"]).parts == ("dense",)
  assert jaxattn.synthesizer(max_length=1, parts=["factorized_dense"])
  exponents = {name: cases.make(name).memory_exponent for name in cases.ALL}
  quadratic = {name for name, e in exponents.items() if e == 2}
  assert quadratic == {"random", "fixed_random"}
  shorter = dataclasses.replace(cases.make("dense"), max_length=5)
  assert shorter == jaxattn.synthesizer(max_length=5, parts=("dense",))


@pytest.mark.parametrize(
  ("logits", "value", "message"),
  [
    ((4, 3, 3), (1, 3, 4, 2), "one rank"),
    ((2, 4, 3, 3), (3, 3, 4, 2), "leading axes"),
    ((1, 4, 3, 5), (1, 3, 4, 2), "number of keys"),
    ((1, 4, 3, 3), (1, 3, 3, 2), "heads must divide"),
  ],
)
def test_op_checks_shapes(logits, value, message):
  with pytest.raises(ValueError, match=message):
    jaxattn.synthetic_attention(jnp.ones(logits), jnp.ones(value))
  with pytest.raises(ValueError, match="floating"):
    jaxattn.synthetic_attention(
      jnp.ones((1, 1, 2, 2), int), jnp.ones((1, 2, 1, 2))
    )
  with pytest.raises(ValueError, match="query_valid"):
    jaxattn.synthetic_attention(
      jnp.ones((1, 1, 2, 2)),
      jnp.ones((1, 2, 1, 2)),
      mask=jaxattn.Mask(query_valid=jnp.ones((1, 3), bool)),
    )


def test_factors_are_checked():
  with pytest.raises(ValueError, match="leading axes"):
    jaxattn.factorized_dense_logits(jnp.ones((2, 3)), jnp.ones((1, 3)), 4)
  with pytest.raises(ValueError, match="at most a . b = 9, got 10"):
    jaxattn.factorized_dense_logits(jnp.ones((2, 3)), jnp.ones((2, 3)), 10)
