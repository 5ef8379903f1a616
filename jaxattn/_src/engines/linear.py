"""Linear attention: a product of features in place of an exponential."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import dispatch
from jaxattn._src import feature_maps
from jaxattn._src import masks
from jaxattn._src.engines import linear_chunks as chunks
from jaxattn._src.engines import linear_heads
from jaxattn._src.engines import linear_layout as layout_lib
from jaxattn._src.engines import linear_order
from jaxattn._src.engines import linear_sums

HONOURS = frozenset(
  {
    "causal",
    "key_valid",
    "query_valid",
    "query_segment_ids",
    "key_segment_ids",
  }
)


def linear_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  feature_map: feature_maps.FeatureMap = feature_maps.elu_features,
  mask: masks.Mask = masks.FULL,
  implementation: base.Implementation = None,
  chunk: int | None = None,
) -> jax.Array:
  """Attention by a product of features, in time and memory linear in length.

  `out_i = sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j)` over the keys
  that `mask` allows. Without causality the sums over keys are made once; with
  it they are carried from chunk to chunk, and inside a chunk the products are
  quadratic. Features are computed chunk by chunk and again in the backward
  pass, which is written by hand: no array of `S x F` is kept. Segments start
  with empty sums. What a feature map keeps as a logarithm is compared by
  running maxima: nothing of a key that a query does not see takes part in its
  output.

  Args:
    query: `[*B, T, N, H]` floats; no `1 / sqrt(H)` is applied.
    key: `[*B, S, K, H]` floats; K divides N (grouped-query attention).
    value: `[*B, S, K, V]` floats.
    feature_map: of the last axis; see `jaxattn.feature_maps`. One that uses
      arrays is a `jax.tree_util.Partial` of a function and these, which have
      gradients then.
    mask: all fields are honoured but query_positions and key_positions. Packed
      documents, whose ids stand side by side, cost nothing extra in causal
      self-attention; other segments cost a sort and about twice the time.
    implementation: None picks the best that serves the call; "xla" or "pallas"
      asks for one.
    chunk: tokens in a chunk of causal attention; None chooses by platform.

  Returns:
    `[*B, T, N, V]` in query's dtype; exactly zero where a query sees no key or
    only such whose product with it is zero. Sums are float32: 1e-5 relative to
    the quadratic form for float32 inputs, 2e-2 for bfloat16. Reverse-mode
    differentiation only.

  Raises:
    ValueError: if shapes disagree or the feature map is not one.
    NotImplementedError: if the mask has positions, or the named implementation
      cannot serve the call.

  Example:
    >>> x = jnp.ones((1, 100, 2, 16))
    >>> linear_attention(x, x, x, mask=jaxattn.CAUSAL).shape
    (1, 100, 2, 16)

  Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236; chunks:
  Hua et al., 2022, https://arxiv.org/abs/2202.10447. Differs: nothing is added
  to the normaliser.
  """
  base.check_qkv(query, key, value)
  batch, (q_len, k_len) = query.shape[:-3], (query.shape[-3], key.shape[-3])
  mask.only(*sorted(HONOURS), by="linear_attention").check(batch, q_len, k_len)
  if chunk is not None and chunk < 1:
    raise ValueError(f"chunk must be positive, got {chunk}.")
  feature_map = as_map(feature_map, key)
  choice = dispatch.choose(
    "linear_attention",
    implementation,
    _obstacles(feature_map, query, value, mask, chunk),
  )
  q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
  fields = (mask.key_valid, mask.query_segment_ids, mask.key_segment_ids)
  ids = chunks.Ids(*(_flat(x, batch) for x in fields))
  out = _attend(choice, mask.causal, chunk, feature_map, q, k, v, ids)
  out = out.reshape(*query.shape[:-1], value.shape[-1])
  if mask.query_valid is not None:
    valid = jax.lax.broadcast_to_rank(mask.query_valid, len(batch) + 1)
    out = jnp.where(valid[..., None, None], out, 0.0)
  return out.astype(query.dtype)


def _kernels(device: str) -> Any:
  """The module of a device's kernels."""
  # Imported where they are used: a version of JAX or a platform without them
  # still has the others.
  if device == "hopper":
    from jaxattn._src.pallas import linear_gpu

    return linear_gpu
  from jaxattn._src.pallas import linear_tpu

  return linear_tpu


def _obstacles(
  feature_map: Any,
  query: jax.Array,
  value: jax.Array,
  mask: masks.Mask,
  chunk: int | None,
) -> dict[str, str | None]:
  """Why the kernels cannot serve a call, by their device."""
  found: dict[str, str | None] = {"hopper": "", "tpu": ""}
  device = dispatch.kernel_device()
  if device not in found:
    return found
  if chunk is not None:
    return found | {device: "it chooses its own chunks"}
  segments = mask.key_segment_ids is not None
  why = _kernels(device).obstacle(
    feature_map, query, value, causal=mask.causal, segments=segments
  )
  return found | {device: why}


def _attend(
  choice: dispatch.Choice,
  causal: bool,
  chunk: int | None,
  feature_map: Any,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  ids: chunks.Ids,
) -> jax.Array:
  """`[B, T, N, V]` float32 by whom the call is best served."""
  arrays = (feature_map, query, key, value)
  if ids.key_segment is not None:
    return linear_order.attend(causal, chunk, *arrays, ids)
  valid, precision = ids.key_valid, dispatch.precision(query.dtype)
  if causal:
    key, value, valid = _aligned(query.shape[1], key, value, valid)
    arrays = (feature_map, query, key, value)
    if choice.name != "xla":
      attend = _kernels(choice.name).attend
      return attend(*arrays, valid, interpret=choice.interpret)
  if chunk is None and linear_heads.pays(feature_map, query, key, causal):
    return linear_heads.attend(causal, precision, *arrays, valid)
  if causal:
    return linear_order.attend(True, chunk, *arrays, chunks.Ids(valid))
  return linear_sums.attend(*arrays, valid, precision=precision)


def linear_extend(
  state: chunks.State,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  feature_map: feature_maps.FeatureMap = feature_maps.elu_features,
  key_valid: jax.Array | None = None,
  chunk: int | None = None,
) -> tuple[jax.Array, chunks.State]:
  """Attends causally from new tokens, after those that a state stands for.

  One token at a time this is a recurrent network: time and memory of a step do
  not depend on how many came before. Many at a time are computed by chunks.

  Args:
    state: from `linear_state` or from here.
    query: `[*B, n, N, H]` floats.
    key: `[*B, n, K, H]` floats.
    value: `[*B, n, K, V]` floats.
    feature_map: as of `linear_attention`, the same in every call.
    key_valid: `[*B, n]` bool, which new tokens are there; None for all. The
      others leave the state as it is and give zero.
    chunk: as of `linear_attention`.

  Returns:
    `[*B, n, N, V]` in query's dtype, and the state after the new tokens.

  Raises:
    ValueError: if shapes disagree or the feature map is not one.

  Example:
    >>> x = jax.random.normal(jax.random.key(0), (1, 9, 2, 16))
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=16)
    >>> state = linear_state((1,), shapes)
    >>> start, state = linear_extend(state, *[x[:, :8]] * 3)
    >>> step, state = linear_extend(state, *[x[:, 8:]] * 3)
    >>> whole = linear_attention(x, x, x, mask=jaxattn.CAUSAL)
    >>> bool(jnp.abs(step - whole[:, 8:]).max() < 1e-5)
    True

  Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, section
  3.4.
  """
  base.check_qkv(query, key, value)
  batch, length = query.shape[:-3], query.shape[-3]
  feature_map = as_map(feature_map, key)
  q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
  flat = None if key_valid is None else key_valid.reshape(-1, length)
  engine, layout = linear_order.plan(feature_map, [q, k], chunk)
  rows = layout.rows(q, k, v, chunks.Ids(flat))
  flat_state = jax.tree.map(
    lambda x: x.reshape(-1, *x.shape[len(batch) :]), state
  )
  new, out, _ = engine.forward(feature_map, rows, flat_state)
  out = layout.joined(out).reshape(*query.shape[:-1], value.shape[-1])
  if key_valid is not None:
    out = jnp.where(key_valid[..., None, None], out, 0.0)
  new = jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), new)
  return out.astype(query.dtype), new


def linear_state(
  batch_shape: tuple[int, ...],
  shapes: base.AttentionShapes,
  *,
  feature_map: feature_maps.FeatureMap = feature_maps.elu_features,
) -> chunks.State:
  """The state of `linear_extend` before any token.

  Args:
    batch_shape: `*B`.
    shapes: heads and their sizes.
    feature_map: as of `linear_attention`.

  Returns:
    `sums [*B, K, F, V]`, `normalizer [*B, K, F]`, and `scale [*B, K]` for maps
    that keep a logarithm; float32, since they add up many tokens.

  Raises:
    ValueError: if the feature map is not one.

  Example:
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=16)
    >>> linear_state((3,), shapes).sums.shape
    (3, 2, 16, 16)

  Source: Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, eq. 18.
  """
  heads, depth = shapes.kv_heads, shapes.value_size
  key = jnp.zeros((1, 1, heads, shapes.head_dim), shapes.dtype)
  value = jnp.zeros((1, 1, heads, depth), shapes.dtype)
  feature_map = as_map(feature_map, key)
  engine, layout = linear_order.plan(feature_map, [key, key], None)
  rows = layout.rows(key, key, value, chunks.Ids())
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x[0], (*batch_shape, *x.shape[1:])),
    engine.empty(feature_map, rows),
  )


def as_map(feature_map: Any, key: jax.Array) -> Any:
  """The feature map as a pytree of its arrays, or ValueError if it is none."""
  if not callable(feature_map):
    raise ValueError(
      "feature_map must be a function of [..., H], such as "
      f"jaxattn.feature_maps.elu_features; got {feature_map!r}."
    )
  if not isinstance(feature_map, jax.tree_util.Partial):
    feature_map = jax.tree_util.Partial(feature_map)
  for leaf in jax.tree.leaves(feature_map):
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise ValueError(
        "the arrays of a feature_map must be floating point, got "
        f"{jnp.result_type(leaf)}; bind others with functools.partial."
      )
  one = jax.ShapeDtypeStruct((1, key.shape[-1]), key.dtype)
  found = jax.eval_shape(chunks.features, feature_map, one)
  scale = found.log_scale
  if (
    found.values.shape[:-1] != (1,)
    or scale is not None
    and (scale.shape != (1,))
  ):
    raise ValueError(
      "feature_map must give [..., F] (and a log_scale of [...]) for [..., H]; "
      f"for (1, {key.shape[-1]}) it gave {found.values.shape}"
      + ("." if scale is None else f" and {scale.shape}.")
    )
  return feature_map


def _flat(x: jax.Array | None, batch: tuple[int, ...]) -> jax.Array | None:
  """A field of a mask with one batch axis, of size 1 if it serves all rows."""
  if x is None:
    return None
  if any(size > 1 for size in x.shape[:-1]):
    x = jnp.broadcast_to(x, (*batch, x.shape[-1]))
  return x.reshape(-1, x.shape[-1])


def _aligned(
  q_len: int, key: jax.Array, value: jax.Array, valid: jax.Array | None
) -> Any:
  """As many keys as queries: later ones are not seen, missing ones added."""
  k_len = key.shape[1]
  if q_len > k_len and valid is None:
    valid = jnp.ones((1, k_len), bool)
  return jax.tree.map(
    lambda x: layout_lib.fill(x[:, :q_len], max(0, q_len - k_len)),
    (key, value, valid),
  )
