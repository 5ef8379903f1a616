"""Synthesizer: its equation and its invariants, part by part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from tests import synthesizer_cases as cases
from tests.method_cases import assert_close
from tests.method_cases import assert_zero


@pytest.fixture
def _small_blocks(monkeypatch):
  cases.cut_small(monkeypatch)
  yield
  cases.pull.clear_cache()


@pytest.mark.parametrize("name", list(cases.EQUATIONS))
@pytest.mark.usefixtures("_small_blocks")
def test_equals_the_equation(name):
  """In value and all gradients, in several blocks, with every mask field.

  2e-5: gradients pass two more products than the output does.
  """
  method, qkv, mask = cases.EQUATIONS[name], cases.draw(0), cases.full_mask()
  params, state = cases.variables(method)
  got = cases.pull(method, params, state, qkv, mask, cases.cotangent())
  want = cases.pull_naive(
    method, params or {}, state, qkv, mask, cases.cotangent()
  )
  assert_close(got, want, 2e-5)
  seen = np.asarray(
    jnp.any(mask.dense(cases.LENGTH, cases.LENGTH)[:, 0], axis=-1)
  )
  assert not seen.all()
  assert_zero(np.asarray(got[0])[~seen])
  assert np.abs(np.asarray(got[0])[seen]).min() > 0


@pytest.mark.parametrize("lengths", [(13, 17), (17, 4), (1, 17)])
@pytest.mark.usefixtures("_small_blocks")
def test_equals_the_equation_across_lengths(lengths):
  """Cross-attention takes the first T rows and S columns."""
  method = cases.EQUATIONS["all"]
  params, state = cases.variables(method)
  args = (cases.draw(1, *lengths), jaxattn.FULL, cases.cotangent(lengths[0]))
  got = cases.pull(method, params, state, *args)
  assert_close(got, cases.pull_naive(method, params, state, *args), 2e-5)


def test_op_equals_softmax_with_logits_of_one_or_every_row():
  value = cases.draw(2)[2]
  for lead in (1, cases.BATCH):
    logits = jax.random.normal(
      jax.random.key(3), (lead, cases.HEADS, cases.LENGTH, cases.LENGTH)
    )
    for mask in (jaxattn.FULL, jaxattn.CAUSAL, cases.full_mask()):
      got = jaxattn.synthetic_attention(logits, value, mask=mask)
      table = jnp.broadcast_to(logits, (cases.BATCH, *logits.shape[1:]))
      allowed = jax.lax.broadcast_to_rank(
        mask.dense(cases.LENGTH, cases.LENGTH), 4
      )
      maps = jnp.where(allowed, jnp.exp(table), 0.0)
      total = jnp.sum(maps, axis=-1, keepdims=True)
      maps = maps / jnp.where(total > 0, total, 1.0)
      values = jnp.repeat(value, cases.HEADS // cases.KV_HEADS, axis=2)
      want = jnp.einsum("bnts,bsnv->btnv", maps, values, precision="highest")
      assert_close(got, want)


# Random parts.


def test_random_map_is_one_for_all_inputs():
  """The same for every row of the batch and every input."""
  method = cases.make("random")
  params, state = cases.variables(method)
  query, key, _ = cases.draw(4)
  maps = cases.attention_map(method, params, state, query, key)
  other = cases.attention_map(method, params, state, 5 - 9 * query, key * 7)
  np.testing.assert_array_equal(maps, other)
  np.testing.assert_array_equal(maps[0], maps[1])
  want = jax.nn.softmax(
    params["random"]["table"][:, : cases.LENGTH, : cases.LENGTH]
  )
  assert_close(maps[0], want)


@pytest.mark.parametrize("parts", [("random",), ("dense", "factorized_dense")])
def test_what_is_not_read_has_no_gradient(parts):
  method = cases.make(*parts)
  _, (_, (dq, dk, dv)) = cases.pull(
    method,
    *cases.variables(method),
    cases.draw(5),
    jaxattn.CAUSAL,
    cases.cotangent(),
  )
  assert_zero(dk)
  assert np.abs(dv).max() > 0.1
  if parts == ("random",):
    assert_zero(dq)
  else:
    assert np.abs(dq).max() > 1e-2


def test_fixed_random_is_not_trained():
  """It is state: not among the parameters, kept, and without a gradient."""
  method, qkv = cases.make("fixed_random", "dot_product"), cases.draw(6)
  params, state = method.init(jax.random.key(0), cases.SHAPES)
  assert set(params) == {"mixing"}
  assert state["fixed_random"]["table"].shape == (
    cases.HEADS,
    cases.LONGEST,
    cases.LONGEST,
  )

  def loss(state):
    out, after = method.apply(params, state, *qkv, train=True)
    return jnp.sum(out**2), after

  grad, after = jax.grad(loss, has_aux=True)(state)
  assert_zero(grad["fixed_random"]["table"])
  np.testing.assert_array_equal(
    after["fixed_random"]["table"], state["fixed_random"]["table"]
  )
  assert (
    cases.make("fixed_random").init(jax.random.key(0), cases.SHAPES)[0] == ()
  )


@pytest.mark.parametrize("part", ["random", "factorized_random"])
def test_random_logits_are_drawn_with_the_stated_deviation(part):
  """8 x 64 x 64 entries of 8 factors: the spread of the estimate is 2%."""
  shapes = jaxattn.AttentionShapes(num_heads=8, head_dim=4)
  for stddev, want in ((None, 1 / 8), (2.0, 2.0)):
    method = jaxattn.synthesizer(max_length=64, parts=(part,), stddev=stddev)
    p = method.init(jax.random.key(0), shapes)[0][part]
    table = p.get("table")
    if table is None:
      table = jnp.einsum("ntk,nsk->nts", p["rows"], p["columns"])
    assert abs(float(jnp.std(table)) / want - 1) < 0.1
    assert abs(float(jnp.mean(table))) < 0.1 * want
    assert np.abs(table[0] - table[1]).max() > want  # Heads are not one.


def test_factorized_random_has_its_rank():
  """Before the softmax, which takes one number off each row: one rank more."""
  method = cases.make("factorized_random", rank=3)
  params, state = cases.variables(method)
  query, key, _ = cases.draw(7)
  logs = jnp.log(cases.attention_map(method, params, state, query, key)[0])
  for head in np.linalg.svd(np.asarray(logs, np.float64), compute_uv=False):
    assert head[3] > 1e-2 * head[0]
    assert head[4] < 1e-5 * head[0]


def test_zero_logits_average_and_large_diagonal_passes_through():
  method, (query, key, value) = cases.make("random"), cases.draw(8)
  table = jnp.zeros((cases.HEADS, cases.LONGEST, cases.LONGEST))
  values = jnp.repeat(value, cases.HEADS // cases.KV_HEADS, axis=2)

  def attend(table, mask=jaxattn.FULL):
    params = {"random": {"table": table}}
    return method.apply(params, (), query, key, value, mask=mask)[0]

  mean = jnp.mean(values, axis=1, keepdims=True)
  assert_close(attend(table), jnp.broadcast_to(mean, values.shape))
  count = jnp.arange(1.0, cases.LENGTH + 1).reshape(1, -1, 1, 1)
  running = jnp.cumsum(values, axis=1) / count
  assert_close(attend(table, jaxattn.CAUSAL), running)
  large = table + 1e4 * jnp.eye(cases.LONGEST)[None]
  for mask in (jaxattn.FULL, jaxattn.CAUSAL):
    np.testing.assert_array_equal(attend(large, mask), values)


def test_bfloat16_average_of_many():
  """Logits near zero over 4096 keys: the softmax must sum in float32."""
  length = 4096
  logits = 1e-3 * jax.random.normal(jax.random.key(0), (1, 1, 2, length))
  value = 1 + jax.random.normal(jax.random.key(1), (1, length, 1, 4))
  want = jaxattn.synthetic_attention(logits, value)
  got = jaxattn.synthetic_attention(
    logits.astype(jnp.bfloat16), value.astype(jnp.bfloat16)
  )
  assert got.dtype == jnp.bfloat16
  assert np.abs(want - 1).max() < 0.1
  assert_close(got, want, 2e-2)


@pytest.mark.usefixtures("_small_blocks")
def test_gradients_of_many_blocks_add_up_in_float32():
  """400 blocks of 5 rows give 2.5 each; a bfloat16 sum would stop near 640."""
  value = jnp.ones((1, 2, 1, 1), jnp.bfloat16)
  logits = jnp.zeros((1, 1, 2000, 2), jnp.bfloat16)

  def total(value):
    out = jaxattn.synthetic_attention(logits, value)
    return jnp.sum(out.astype(jnp.float32))

  grad = jax.grad(total)(value)
  assert grad.dtype == jnp.bfloat16
  assert_close(grad, jnp.full_like(grad, 1000.0), 1e-2)


# Dense parts.


@pytest.mark.parametrize("part", ["dense", "factorized_dense"])
def test_dense_rows_read_their_own_token_only(part):
  method = cases.make(part)
  params, state = cases.variables(method)
  query, key, _ = cases.draw(9)
  maps = cases.attention_map(method, params, state, query, key)
  late = query.at[:, 4].set(3 - query[:, 4])
  changed = cases.attention_map(method, params, state, late, 2 * key)
  others = np.arange(cases.LENGTH) != 4
  np.testing.assert_array_equal(changed[:, :, others], maps[:, :, others])
  assert np.abs(changed[:, :, 4] - maps[:, :, 4]).max() > 1e-2


@pytest.mark.parametrize("factors", [(8, 8), (4, 6), (1, 5), (7, 3)])
def test_factorized_dense_logits_are_all_pairs(factors):
  """All distinct for generic factors; with ones inside, blocks of the outer."""
  rng = np.random.default_rng(0)
  inner, outer = (
    jnp.asarray(rng.normal(size=(3, n)), jnp.float32) for n in factors
  )
  pairs = factors[0] * factors[1]
  found = jaxattn.factorized_dense_logits(inner, outer, pairs)
  for row in np.asarray(found):
    assert len(np.unique(row)) == pairs
  want = np.concatenate(
    [inner * outer[:, j : j + 1] for j in range(factors[1])], axis=-1
  )
  np.testing.assert_array_equal(found, want)
  flat = jaxattn.factorized_dense_logits(jnp.ones_like(inner), outer, pairs)
  np.testing.assert_array_equal(flat, jnp.repeat(outer, factors[0], axis=-1))
  fewer = jaxattn.factorized_dense_logits(inner, outer, pairs - 1)
  np.testing.assert_array_equal(fewer, found[:, :-1])


@pytest.mark.parametrize("part", ["dense", "factorized_dense"])
def test_shared_heads_are_heads_with_equal_layers(part):
  shared, apart = cases.make(part, share_heads=True), cases.make(part)
  params, state = cases.variables(shared)
  copied = {
    name: jnp.stack([x] * cases.HEADS) if name != "hidden_bias" else x
    for name, x in params[part].items()
  }
  qkv = cases.draw(10)
  want, _ = apart.apply({part: copied}, (), *qkv)
  got, _ = shared.apply(params, state, *qkv)
  assert_close(got, want)


# Mixtures.


def test_mixture_starts_uniform_and_reaches_each_part():
  method, qkv = cases.make("dot_product", "random", stddev=1.0), cases.draw(11)
  params, _ = method.init(jax.random.key(0), cases.SHAPES)
  assert_zero(params["mixing"])
  query, key, value = qkv
  logits = cases.naive_logits(method, params, (), query, key)
  got, _ = method.apply(params, (), *qkv)
  half = jaxattn.synthetic_attention((logits[0] + logits[1]) / 2, value)
  assert_close(got, half)
  for mixing, want in (
    ([60.0, -60.0], jaxattn.dense_attention(*qkv)),
    ([-60.0, 60.0], jaxattn.synthetic_attention(logits[1], value)),
  ):
    params["mixing"] = jnp.array(mixing)
    assert_close(method.apply(params, (), *qkv)[0], want)


def test_weights_of_two_parts_are_a_sigmoid():
  """The authors' code: `(1 - s) q.k + s R` with `s` a sigmoid."""
  method, qkv = cases.make("dot_product", "random", stddev=1.0), cases.draw(12)
  params, _ = method.init(jax.random.key(0), cases.SHAPES)
  a = 0.7
  params["mixing"] = jnp.array([0.2, 0.2 + a])
  dot, random = cases.naive_logits(method, params, (), *qkv[:2])
  share = 1 / (1 + np.exp(np.float32(-a)))
  want = jaxattn.synthetic_attention((1 - share) * dot + share * random, qkv[2])
  assert_close(method.apply(params, (), *qkv)[0], want)


def test_parts_draw_the_same_in_any_order():
  one = cases.make("random", "dense").init(jax.random.key(3), cases.SHAPES)[0]
  two = cases.make("dense", "random").init(jax.random.key(3), cases.SHAPES)[0]
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert np.abs(one["dense"]["kernel"]).max() > 0.1
