"""Longformer's self-attention: global tokens with projections of their own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn._src import base
from jaxattn._src import global_tokens
from jaxattn._src import masks
from jaxattn._src import pattern_method
from jaxattn._src import positions as positions_lib
from jaxattn._src import relative as relative_lib
from jaxattn.nn import linen as layers
from jaxattn.nn import mixing

_SUFFIX = "_global"


class LongformerSelfAttention(layers.Attention, kw_only=True):
  """Self-attention over a static pattern and over global tokens.

  As `jaxattn.nn.linen.Attention`, and the call takes `global_positions`: these
  tokens are seen by all, in one softmax with the pattern, and see all. They
  look by projections of their own, `query_global`, `key_global` and
  `value_global`, of which the first maps the global tokens only. All other
  tokens look at them by `key` and `value`.

  The second projections exist in any case; without global tokens their gradient
  is zero. They are drawn separately: `copy_global` makes them copies of the
  first, as for a model that begins from one without global tokens.

  Attributes:
    method: a method that is a static pattern: `jaxattn.longformer(window=512)`,
      whose dilation may differ per head, or another. Global tokens of the
      pattern itself look by the first projections.
    global_projections: whether global tokens have projections of their own. If
      not, the variables are those of `Attention`.

  The other attributes are those of `Attention`.

  Raises:
    ValueError: if `method` is no static pattern.

  Example:
    >>> from jaxattn.models.layers import longformer
    >>> layer = longformer.LongformerSelfAttention(
    ...     method=jaxattn.longformer(window=4, dilation=(1, 2)), num_heads=2)
    >>> x = jnp.ones((2, 9, 8))
    >>> places = jnp.array([[0, -1], [0, 5]])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer.apply(variables, x, global_positions=places).shape
    (2, 9, 8)

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 3.1.
  """

  global_projections: bool = True

  @nn.compact
  def __call__(  # pyrefly: ignore[bad-override]
    self,
    x: jax.Array,
    *,
    global_positions: jax.Array | None = None,
    mask: masks.Mask = masks.FULL,
    positions: jax.Array | None = None,
    train: bool = False,
    decode: bool = False,
  ) -> jax.Array:
    """Attends from `x` to itself.

    Args:
      x: `[*B, T, D]` floats.
      global_positions: `[*B, G]` ints, the places of each row's global tokens
        in any order, -1 at padding; None for no global tokens. See
        `jaxattn.global_positions`.
      mask: what may attend to what; global tokens obey it too. Rows of invalid
        queries are zero before `out`.
      positions: `[*B, T]` ints for rotary; None counts from 0.
      train: as of `Attention`.
      decode: as of `Attention`; without global tokens only.

    Returns:
      `[*B, T, out_features]`.

    Raises:
      ValueError: if options, shapes or arguments do not fit together.
    """
    _check(self.method, x, global_positions, decode)
    shapes = self._shapes(x.shape[-1])
    names = mixing.axis_names(self.num_heads, self.num_kv_heads)
    if global_positions is None:
      if self.global_projections and self.is_initializing():
        first = x[..., :1, :]
        self._global_heads(first, first, shapes, names)
      return super().__call__(
        x, mask=mask, positions=positions, train=train, decode=decode
      )
    mixing.check_call(
      mask=mask,
      context=None,
      positions=positions,
      context_positions=None,
      rotary=self.rotary,
      train=train,
      decode=decode,
    )
    query, key, value = self._heads(x, None, shapes, names)
    params, _ = self._method_variables(shapes)
    places = jnp.clip(global_positions, 0, x.shape[-2] - 1)
    own: tuple[jax.Array | None, ...] = (None, None, None)
    if self.global_projections:
      chosen = global_tokens.take_tokens(x, places)
      own = self._global_heads(chosen, x, shapes, names)
    if self.rotary is not None:
      if positions is None:
        positions = mixing.count(query, None)
      query, key = (self._turn(h, positions) for h in (query, key))
      if own[0] is not None and own[1] is not None:
        lead = (*places.shape[:-1], x.shape[-2])
        at = jnp.broadcast_to(positions, lead)
        at = global_tokens.take_tokens(at, places)
        own = (self._turn(own[0], at), self._turn(own[1], positions), own[2])
    out = _attend(
      self.method, params, query, key, value, own, global_positions, mask
    )
    width = x.shape[-1] if self.out_features is None else self.out_features
    return self._project(
      "out",
      (width,),
      names["out"],
      contract=2,
      kernel_init=self.out_kernel_init or self.kernel_init,
    )(out)

  def _turn(self, heads: jax.Array, positions: jax.Array) -> jax.Array:
    assert self.rotary is not None
    return positions_lib.apply_rotary(heads, positions, base=self.rotary)

  def _global_heads(
    self,
    chosen: jax.Array,
    x: jax.Array,
    shapes: base.AttentionShapes,
    names: dict[str, tuple[str, ...]],
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries `[*B, G, N, H]` of the chosen tokens, keys and values of all."""
    query, key, value = (
      self._project(name + _SUFFIX, (heads, shapes.head_dim), names[name])(
        inputs
      )
      for name, heads, inputs in (
        ("query", self.num_heads, chosen),
        ("key", shapes.kv_heads, x),
        ("value", shapes.kv_heads, x),
      )
    )
    if self.qk_norm:
      query = self._norm(f"query_norm{_SUFFIX}")(query)
      key = self._norm(f"key_norm{_SUFFIX}")(key)
    return query, key, value


def copy_global(params: Any) -> Any:
  """Makes the projections of global tokens copies of the first ones.

  Wherever `query_global` stands, it becomes `query`; likewise `key`, `value`
  and the norms of `qk_norm`. Global tokens then begin as tokens that see all.
  For a model that was trained without global tokens, as by masked language
  modelling, copy again after that training: the second projections had no
  gradient in it.

  Args:
    params: parameters of a layer or of a whole model, or variables.

  Returns:
    The tree with the copies; the given one is not modified.

  Raises:
    ValueError: if there is no `query_global` in it.

  Example:
    >>> from jaxattn.models.layers import longformer
    >>> longformer.copy_global({"query": 1, "query_global": 2})
    {'query': 1, 'query_global': 1}

  Source: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, section 3.1.
  """
  copied = 0

  def walk(tree: Any) -> Any:
    nonlocal copied
    if not isinstance(tree, Mapping):
      return tree
    new = {}
    for name, value in tree.items():
      first = str(name).removesuffix(_SUFFIX)
      if first != name and first in tree:
        copied += 1
        value = tree[first]
      new[name] = walk(value)
    return new

  result = walk(params)
  if not copied:
    raise ValueError(
      "params must hold query_global beside query, but no name ends in "
      f"{_SUFFIX!r}; the model needs global_projections=True."
    )
  return result


def is_pattern(method: base.AttentionMethod) -> bool:
  """Whether the method is a static pattern, as global tokens need."""
  return isinstance(method, pattern_method.PatternMethod)


def _check(
  method: base.AttentionMethod,
  x: jax.Array,
  global_positions: jax.Array | None,
  decode: bool,
) -> None:
  if not is_pattern(method):
    raise ValueError(
      "method must be a static pattern, such as "
      f"jaxattn.longformer(window=512), got {method}."
    )
  if global_positions is None:
    return
  if decode:
    raise ValueError(
      "decode=True does not serve global_positions: leave them out, or let the "
      "method have leading global tokens (num_global)."
    )
  found = global_positions
  fits = found.ndim == x.ndim - 1 and found.shape[:-1] == x.shape[:-2]
  if not fits or not jnp.issubdtype(found.dtype, jnp.integer):
    raise ValueError(
      f"global_positions must be integers [*B, G] with *B {x.shape[:-2]}, got "
      f"{found.dtype}{found.shape}."
    )


def _attend(
  method: Any,
  params: base.Params,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  own: tuple[jax.Array | None, ...],
  global_positions: jax.Array,
  mask: masks.Mask,
) -> jax.Array:
  """The pattern of the method with the global tokens, `[*B, T, N, H]`."""
  mask.only(*sorted(method.honours), by=type(method).__name__)
  heads, length = query.shape[-2], query.shape[-3]
  pattern = method.pattern(
    heads, length, length, causal=mask.causal and not mask.dynamic_causal
  )
  return global_tokens.global_attention(
    query,
    key,
    value,
    global_positions,
    pattern=pattern,
    mask=mask,
    relative=relative_lib.of_scheme(method.relative, params, query),
    global_query=own[0],
    global_key=own[1],
    global_value=own[2],
    implementation=method.implementation,
  )
