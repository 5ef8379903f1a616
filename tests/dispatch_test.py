"""Who serves a call: by device, by request, and by what kernels can do."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxattn
from jaxattn import patterns
from jaxattn._src import dispatch
from jaxattn._src.engines import head_loop


def _choose(implementation=None, reason=None):
  return dispatch.choose("engine", implementation, {"tpu": reason})


def test_without_kernels_xla_serves():
  assert dispatch.choose("engine", None).name == "xla"
  with pytest.raises(NotImplementedError, match="engine has no Pallas kernel"):
    dispatch.choose("engine", "pallas")


def test_on_another_device_xla_serves():
  found = _choose()
  assert found.name == "xla"
  assert found.reason == "the kernels of engine need a TPU, and this is cpu"
  with pytest.raises(NotImplementedError, match="pass implementation=None"):
    _choose("pallas")


def test_on_its_device_the_kernel_serves_unless_xla_is_asked_for():
  with dispatch.emulate("tpu", "params"):
    assert _choose() == ("tpu", "a TPU is here", "params")
    assert _choose("pallas").name == "tpu"
    assert _choose("xla") == ("xla", "asked for", None)
  assert _choose().name == "xla"


def test_what_a_kernel_cannot_do_is_named():
  with dispatch.emulate("tpu"):
    assert _choose(reason="too wide").reason.endswith("serve: too wide")
    with pytest.raises(NotImplementedError, match="too wide"):
      _choose("pallas", reason="too wide")


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="got 'triton'"):
    _choose("triton")


def test_what_the_compiler_may_divide_is_left_to_xla(monkeypatch):
  """Tests run on eight devices; a kernel cannot be divided among them."""
  monkeypatch.setattr(dispatch, "kernel_device", lambda: "tpu")
  assert _choose().name == "xla"
  assert "inside jax.shard_map" in _choose().reason
  assert _choose("pallas").name == "tpu"
  names = []

  def inside(x):
    names.append(_choose().name)
    return x

  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ("x",), axis_types=auto)
  spec = jax.sharding.PartitionSpec("x")
  run = jax.shard_map(inside, mesh=mesh, in_specs=spec, out_specs=spec)
  run(jnp.ones(8))
  assert names == ["tpu"]


@pytest.mark.parametrize("relative", [False, True])
def test_heads_one_after_the_other_equal_all_at_once(monkeypatch, relative):
  rngs = jax.random.split(jax.random.key(0), 5)
  shapes = [(2, 40, 4, 8), (2, 40, 2, 8), (2, 40, 2, 8), (2, 40, 4, 8)]
  query, key, value, dout = (
    jax.random.normal(rng, shape)
    for rng, shape in zip(rngs[:4], shapes, strict=True)
  )
  pattern = patterns.Window(7, 3) | patterns.Global(2)
  logits = jax.random.normal(rngs[4], (1, 1, 4, 5))

  def attend(query, key, value, logits):
    term = jaxattn.Relative(
      logits=logits, label=lambda d: jnp.clip(d + 2, 0, 4)
    )
    return jaxattn.block_sparse(
      query,
      key,
      value,
      pattern=pattern,
      relative=term if relative else None,
    )

  def both():
    @jax.jit  # A new function each time: it traces anew.
    def passes(dout, *inputs):
      out, pull = jax.vjp(attend, *inputs)
      return (out, *pull(dout))

    return passes(dout, query, key, value, logits)

  want = both()
  called = []
  run = head_loop.run

  def counted(*args):
    called.append(args)
    return run(*args)

  monkeypatch.setattr(head_loop, "pays", lambda tokens, heads: heads > 1)
  monkeypatch.setattr(head_loop, "run", counted)
  jax.clear_caches()
  got = both()
  assert len(called) == 2
  for g, w in zip(got, want, strict=True):
    assert jnp.abs(g - w).max() < 1e-5


def test_linear_attention_by_heads_and_at_once_agree(monkeypatch):
  """On other platforms all heads are taken together."""
  rngs = jax.random.split(jax.random.key(0), 5)
  query, dout = (jax.random.normal(r, (2, 300, 4, 8)) for r in rngs[:2])
  key, value = (jax.random.normal(r, (2, 300, 2, 8)) for r in rngs[2:4])
  projection = jaxattn.draw_projection(rngs[4], 16, 8)
  valid = jnp.arange(300)[None] < jnp.array([[300], [250]])

  def both(causal):
    def attend(projection, query, key, value):
      return jaxattn.linear_attention(
        query,
        key,
        value,
        feature_map=jax.tree_util.Partial(
          jaxattn.positive_features, projection
        ),
        mask=jaxattn.Mask(causal=causal, key_valid=valid),
      )

    @jax.jit  # A new function each time: it traces anew.
    def passes(dout, *inputs):
      out, pull = jax.vjp(attend, *inputs)
      return (out, *pull(dout))

    return passes(dout, projection, query, key, value)

  for causal in (False, True):
    want = both(causal)  # Chunk by chunk.
    for by_head in (True, False):
      with monkeypatch.context() as patch:
        if by_head:
          pays = functools.partial(lambda tokens, heads: heads > 1)
          patch.setattr(head_loop, "pays", pays)
        else:
          patch.setattr(dispatch, "platform", lambda: "gpu")
        jax.clear_caches()
        got = both(causal)
      for g, w in zip(got, want, strict=True):
        assert jnp.linalg.norm(g - w) <= 1e-5 * jnp.linalg.norm(w)
