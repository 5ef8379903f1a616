"""Decoders in reversible residuals: gradients, choices, state and memory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxattn
from jaxattn._src import reversible as reversible_lib
from jaxattn.models import decoder
from jaxattn.models import decoding
from jaxattn.models import losses
from tests import stateful_method
from tests.method_cases import assert_close

V, T = 11, 16


def _model(method=None, **options: Any):
  """A small reversible decoder, its variables, and tokens."""
  methods = method or (jaxattn.dense(),)
  cfg = decoder.DecoderConfig(
    **{
      "vocab_size": V,
      "width": 16,
      "num_layers": 3,
      "num_heads": 2,
      "methods": methods if isinstance(methods, tuple) else (methods,),
      "max_length": T,
      "residuals": "reversible",
      "tie_embeddings": False,
      **options,
    }
  )
  model = decoder.Decoder(cfg)
  tokens = jax.random.randint(jax.random.key(1), (2, T), 0, V)
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
  return model, variables, tokens


def _plainly(branches, params, x1, x2, *, return_saved=False):
  """The same recurrence with every activation kept."""
  streams, saved = [x1, x2], []
  for i, (branch, own) in enumerate(zip(branches, params, strict=True)):
    delta, kept = branch(own, streams[1 - i % 2], None)
    streams[i % 2] = streams[i % 2] + delta.astype(jnp.float32)
    saved.append(kept)
  return (*streams, tuple(saved)) if return_saved else tuple(streams)


def _loss(model, variables, tokens, params, train=False, **options):
  """The loss, and the collections that moved."""
  logits, moved = model.apply(
    {**variables, "params": params},
    tokens,
    train=train,
    mutable=["attention"] if train else [],
    **options,
  )
  nats = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(nats[:, :-1], tokens[:, 1:, None], axis=-1)
  return -jnp.mean(picked), moved


def _gradients(monkeypatch, model, variables, tokens, **options):
  """`((loss, moved), gradient)` by reversible and by plain residuals."""
  found = []
  for residuals in (reversible_lib.reversible_residuals, _plainly):
    monkeypatch.setattr(reversible_lib, "reversible_residuals", residuals)
    run = functools.partial(_loss, model, variables, tokens, **options)
    found.append(
      jax.jit(jax.value_and_grad(run, has_aux=True))(variables["params"])
    )
  return found


def _distance(got, want):
  """The largest relative distance of any leaf, by its norm."""
  pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
  return max(
    float(jnp.linalg.norm(g - w) / (jnp.linalg.norm(w) + 1e-12))
    for g, w in pairs
  )


_REFORMER = jaxattn.reformer(chunk=4, num_buckets=6)


def test_gradient_equals_the_plain_one(monkeypatch):
  """With hash buckets, dropout, packed rows and a feed-forward by chunks."""
  local = jaxattn.sliding_window(left=3)
  segments = jnp.repeat(jnp.arange(2), T // 2)[None]
  model, variables, tokens = _model(
    (_REFORMER, local, _REFORMER), dropout=0.2, mlp_chunk=5
  )
  got, want = _gradients(
    monkeypatch,
    model,
    variables,
    tokens,
    train=True,
    mask=jaxattn.packed(jnp.tile(segments, (2, 1)), causal=True),
    rngs={"dropout": jax.random.key(3)},
  )
  assert_close(got[0][0], want[0][0], 1e-6)
  assert _distance(got[1], want[1]) < 1e-4
  steps = [int(x) for x in jax.tree.leaves(got[0][1]) if x.ndim == 0]
  assert steps == [1, 1]  # Rotations moved once, though computed twice.


@pytest.mark.slow
def test_gradient_at_24_layers(monkeypatch):
  """Within 1e-3 of the plain one, relative to the norm of every leaf."""
  model, variables, tokens = _model(
    (jaxattn.sliding_window(left=3), _REFORMER) * 12, num_layers=24
  )
  got, want = _gradients(monkeypatch, model, variables, tokens, train=True)
  assert _distance(got[1], want[1]) < 1e-3


@dataclasses.dataclass(frozen=True)
class _Fickle(stateful_method.Stateful):
  """Chooses a sign by the lowest bits of its queries: rounding turns it."""

  def select(self, params, state, query, key, *, mask, rng, train):
    bits = jax.lax.bitcast_convert_type(query, jnp.int32)
    return jnp.sum(bits & 1, axis=-1) % 2

  def apply(self, params, state, query, key, value, *, selection=None, **kw):
    if selection is None:
      selection = self.select(
        params, state, query, key, mask=None, rng=None, train=False
      )
    out, state = super().apply(params, state, query, key, value, **kw)
    return out * (2.0 * selection[..., None] - 1.0), state


def test_choices_are_not_made_again(monkeypatch):
  """Streams computed back differ in their last bits; the choice does not."""
  model, variables, tokens = _model(_Fickle(), num_layers=4)
  got, want = _gradients(monkeypatch, model, variables, tokens, train=True)
  assert _distance(got[1], want[1]) < 1e-4
  monkeypatch.undo()

  def forgetful(self, own, x, saved):
    return _call(self, own, x, None)

  from jaxattn.models import reversible

  _call = reversible._Branch.__call__
  monkeypatch.setattr(reversible._Branch, "__call__", forgetful)
  run = functools.partial(_loss, model, variables, tokens, train=True)
  lost = jax.jit(jax.grad(run, has_aux=True))(variables["params"])[0]
  assert _distance(lost, want[1]) > 1e-2


def test_state_moves_once():
  model, variables, tokens = _model(stateful_method.Stateful())
  (_, moved), _ = jax.value_and_grad(
    functools.partial(
      _loss, model, variables, tokens, train=True,
      rngs={"attention": jax.random.key(2)},
    ),
    has_aux=True,
  )(variables["params"])  # fmt: skip
  steps = jax.tree.leaves(moved["attention"])
  assert [int(x) for x in steps] == [1, 1, 1]


@pytest.mark.slow
def test_rows_decode_as_they_are_trained():
  strict = dataclasses.replace(_REFORMER, strict=True)
  for options in (dict(tie_embeddings=True), dict(positions="learned")):
    model, variables, tokens = _model(strict, **options)
    want = jax.jit(model.apply)(variables, tokens)
    cache = decoding.init_cache(model, variables, batch_size=2)
    for start, stop in ((0, 5), (5, 6), (6, T)):
      logits, cache = decoding.decode_step(
        model, variables, cache, tokens[:, start:stop]
      )
      assert_close(logits, want[:, start:stop], 2e-5)


def test_parameters_are_those_of_the_plain_decoder():
  """But for the output matrix, which reads both streams."""
  model, variables, tokens = _model()
  plain = decoder.Decoder(dataclasses.replace(model.cfg, residuals="plain"))
  other = nn.unbox(plain.init(jax.random.key(0), tokens))
  shapes = jax.tree.map(jnp.shape, (variables["params"], other["params"]))
  assert shapes[0].pop("unembed") == (V, 32)
  assert shapes[1].pop("unembed") == (V, 16)
  assert shapes[0].pop("final_norm") != shapes[1].pop("final_norm")
  assert shapes[0] == shapes[1]
  assert jax.jit(model.apply)(variables, tokens).dtype == jnp.float32


def test_losses_and_feed_forward_by_chunks_change_nothing():
  model, variables, tokens = _model(tie_embeddings=True)
  targets = jnp.roll(tokens, -1, axis=1)

  def whole(params):
    logits = model.apply({"params": params}, tokens)
    nats = -jax.nn.log_softmax(logits)
    return jnp.take_along_axis(nats, targets[..., None], axis=-1)[..., 0]

  chunks = decoder.Decoder(dataclasses.replace(model.cfg, mlp_chunk=3))

  def parts(params):
    return chunks.apply(
      {"params": params}, tokens, targets, chunk=5, method="token_losses"
    )

  pulls = [jax.jit(lambda p, f=f: jax.vjp(f, p)[1](targets.astype(jnp.float32)))
           for f in (whole, parts)]  # fmt: skip
  params = variables["params"]
  assert_close(parts(params), whole(params), 1e-6)
  assert_close(pulls[1](params), pulls[0](params), 1e-5)
  with pytest.raises(ValueError, match="targets must have shape"):
    losses.chunked_cross_entropy(
      jnp.ones((3, 4)), jnp.ones((5, 4)), targets, chunk=2
    )
  with pytest.raises(ValueError, match="table must be"):
    losses.chunked_cross_entropy(
      jnp.ones((3, 4)), jnp.ones((5, 3)), targets[0, :3], chunk=2
    )


def _kept_bytes(depth, residuals):
  """Of the arrays that the backward pass needs, parameters aside."""
  model, variables, tokens = _model(
    _REFORMER, num_layers=depth, residuals=residuals
  )
  params = variables["params"]

  def loss(params):
    return _loss(model, variables, tokens, params)[0]

  kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
  size = lambda tree: sum(  # noqa: E731
    x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
  return size(kept) - size(params)


@pytest.mark.slow
def test_activation_memory_does_not_grow_with_depth():
  """But by what must be kept: buckets, 4 bytes a token, head and round."""
  buckets = 2 * 2 * T * 2 * 4
  found = {d: _kept_bytes(d, "reversible") for d in (2, 8)}
  added = found[8] - found[2]
  # Each block's own state (12 bytes) and its variables are kept once more.
  assert added <= 6 * (buckets + 4096), found
  plain = {d: _kept_bytes(d, "plain") for d in (2, 8)}
  assert plain[8] - plain[2] > 20 * added, (plain, found)


def test_joined_axes_are_a_table_of_all_positions():
  """Coordinates' vectors side by side, as Reformer has them."""
  model, variables, tokens = _model(
    positions="axes", position_axes=(4, 4), axis_widths=(6, 10)
  )
  params = variables["params"]
  names = [f"axis_embeds_{i}" for i in range(2)]
  rows, columns = (params[n]["embedding"] for n in names)
  assert rows.shape == (4, 6) and columns.shape == (4, 10)
  table = np.concatenate(
    [np.repeat(rows, 4, axis=0), np.tile(columns, (4, 1))], axis=1
  )
  learned = decoder.Decoder(
    dataclasses.replace(
      model.cfg, positions="learned", position_axes=(), axis_widths=()
    )
  )
  others = {k: v for k, v in params.items() if k not in names}
  others["position_embed"] = {"embedding": jnp.asarray(table)}
  got = jax.jit(model.apply)(variables, tokens)
  want = jax.jit(learned.apply)({"params": others}, tokens)
  assert_close(got, want, 1e-6)


@pytest.mark.parametrize(
  ("options", "word"),
  [
    (dict(residuals="other"), "residuals"),
    (dict(remat="full"), "remat"),
    (dict(norm="post"), "norm"),
    (dict(mlp_chunk=0), "mlp_chunk"),
    (dict(positions="axes", position_axes=(4, 4), axis_widths=(4, 4)), "add"),
  ],
)
def test_wrong_options_are_named(options, word):
  with pytest.raises(ValueError, match=word):
    _model(**options)
