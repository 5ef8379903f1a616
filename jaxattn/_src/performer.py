"""Performer: linear attention with random features (FAVOR+)."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxattn._src import base
from jaxattn._src import favor
from jaxattn._src import feature_maps
from jaxattn._src import linear_method

Kind = Literal["positive", "hyperbolic", "trigonometric", "generalized"]
_MAPS: dict[str, Callable[..., feature_maps.Features]] = {
  "positive": favor.positive_features,
  "hyperbolic": favor.hyperbolic_features,
  "trigonometric": favor.trigonometric_features,
}
# A generator of its own, so that what is stored does not depend on that of the
# key it came from.
_GENERATOR = "threefry2x32"


@dataclasses.dataclass(frozen=True)
class Performer(linear_method.LinearMethod):
  """Linear attention that estimates softmax attention by random features.

  The drawn rows are state: `projection [m, H]`, the `key` that they are drawn
  from, and the training `steps` that were made. All heads of a layer share
  them. A projection depends on key and step only, so that a resumed run draws
  the same.

  Attributes:
    num_features: m, random rows; the hyperbolic and trigonometric kinds make
      two features of each.
    kind: the feature map; see `performer`.
    projection: how rows are drawn, or None for generalized features of the
      vectors themselves.
    norms: of the rows; see `draw_projection`.
    redraw_interval: a new projection every so many calls with `train=True`,
      starting with that call; 0 for never.
    function: of generalized features.
    epsilon: least weight of a generalized feature.
    scaled: whether generalized features divide by `H^(1/4)`.
    implementation: as of `linear_attention`.

  Example:
    >>> method = performer(num_features=16)
    >>> shapes = jaxattn.AttentionShapes(num_heads=2, head_dim=8)
    >>> params, state = method.init(jax.random.key(0), shapes)
    >>> x = jnp.ones((1, 6, 2, 8))
    >>> method.apply(params, state, x, x, x, mask=jaxattn.CAUSAL)[0].shape
    (1, 6, 2, 8)

  Source: Choromanski et al., 2021, https://arxiv.org/abs/2009.14794.
  """

  num_features: int = 256
  kind: Kind = "positive"
  projection: favor.ProjectionKind | None = "orthogonal"
  norms: favor.Norms = "chi"
  redraw_interval: int = 1000
  function: Callable[[jax.Array], jax.Array] = jax.nn.relu
  epsilon: float = 1e-3
  scaled: bool = False

  def __post_init__(self) -> None:
    favor.check_option("kind", self.kind, Kind)
    favor.check_option("norms", self.norms, favor.Norms)
    for name, low in (
      ("num_features", 1),
      ("redraw_interval", 0),
      ("epsilon", 0),
    ):
      if getattr(self, name) < low:
        raise ValueError(
          f"{name} must be at least {low}, got {getattr(self, name)}."
        )
    if self.projection is not None:
      favor.check_option("projection", self.projection, favor.ProjectionKind)
    elif self.kind != "generalized":
      raise ValueError(
        f"projection must not be None for kind={self.kind!r}; only generalized "
        "features do without."
      )
    else:
      self._without_effect(
        "projection=None", "num_features", "norms", "redraw_interval"
      )
    if self.kind != "generalized":
      self._without_effect(
        f"kind={self.kind!r}", "function", "epsilon", "scaled"
      )

  def _without_effect(self, reason: str, *names: str) -> None:
    """Refuses options that do nothing and yet are set."""
    for field in dataclasses.fields(self):
      if field.name in names and getattr(self, field.name) != field.default:
        raise ValueError(f"{field.name} has no effect with {reason}.")

  def init(
    self, rng: jax.Array, shapes: base.AttentionShapes
  ) -> tuple[base.Params, base.State]:
    """Draws the first projection; there are no parameters."""
    if self.projection is None:
      return (), ()
    key = jax.random.bits(rng, (2,), jnp.uint32)
    steps = jnp.zeros((), jnp.int32)
    projection = self._draw(key, steps, shapes.head_dim)
    return (), {"projection": projection, "key": key, "steps": steps}

  def _draw(self, key: jax.Array, steps: jax.Array, head_dim: int) -> jax.Array:
    assert self.projection is not None
    rng = jax.random.wrap_key_data(key, impl=_GENERATOR)
    return favor.draw_projection(
      jax.random.fold_in(rng, steps),
      self.num_features,
      head_dim,
      kind=self.projection,
      norms=self.norms,
    )

  def next_state(self, state: base.State) -> base.State:
    """Counts a training step; draws anew when it is time."""
    if self.projection is None or self.redraw_interval == 0:
      return state
    steps = state["steps"] + 1
    projection = jax.lax.cond(
      steps % self.redraw_interval == 0,
      lambda old: self._draw(state["key"], steps, old.shape[-1]),
      lambda old: old,
      state["projection"],
    )
    return state | {"projection": projection, "steps": steps}

  def features(
    self, params: base.Params, state: base.State
  ) -> feature_maps.FeatureMap:
    """The feature map of the projection in `state`."""
    del params
    if self.kind != "generalized":
      return jax.tree_util.Partial(_MAPS[self.kind], state["projection"])
    function = _Generalized(self.function, self.epsilon, self.scaled)
    projection = None if self.projection is None else state["projection"]
    return jax.tree_util.Partial(function, projection)


@dataclasses.dataclass(frozen=True)
class _Generalized:
  """`generalized_features` with its options, as a value."""

  function: Callable[[jax.Array], jax.Array]
  epsilon: float
  scaled: bool

  def __call__(
    self, projection: jax.Array | None, x: jax.Array
  ) -> feature_maps.Features:
    return favor.generalized_features(
      projection,
      x,
      function=self.function,
      epsilon=self.epsilon,
      scaled=self.scaled,
    )


def performer(
  *,
  num_features: int = 256,
  kind: Kind = "positive",
  projection: favor.ProjectionKind | None = "orthogonal",
  norms: favor.Norms = "chi",
  redraw_interval: int = 1000,
  function: Callable[[jax.Array], jax.Array] = jax.nn.relu,
  epsilon: float = 1e-3,
  scaled: bool = False,
  implementation: base.Implementation = None,
) -> Performer:
  """Returns Performer's method: attention by random features, FAVOR+.

  Softmax attention is estimated with an error that falls as `1 / sqrt(m)` and
  grows as `exp(|q + k|^2 / (2 sqrt(H)))`: large queries and keys need
  normalising.

  Args:
    num_features: m, random rows. For one error over all weights m must grow as
      `H log H`, whatever the length.
    kind: `positive`: exponentials; `hyperbolic`: those of a row and its
      negative, twice the features and less than half the variance;
      `trigonometric`: sines and cosines, for comparison only, as what they
      divide by may be near zero or negative; `generalized`: any function, which
      estimates no softmax.
    projection: `orthogonal`, `iid` or `hadamard`; see `draw_projection`. None
      for generalized features of queries and keys themselves.
    norms: `chi`, or `sqrt` for a smaller variance and a bias.
    redraw_interval: a new projection every so many training steps; 0 for never.
      Steps are calls with `train=True` that carry the state on.
    function: of generalized features, elementwise, compared by identity.
    epsilon: least weight of a generalized feature.
    scaled: whether generalized features divide by `H^(1/4)`.
    implementation: as of `linear_attention`.

  Returns:
    A `Performer` method.

  Raises:
    ValueError: for a wrong value, or an option that would have no effect.

  Example:
    >>> performer(kind="generalized", projection=None).init(
    ...   jax.random.key(0), jaxattn.AttentionShapes(num_heads=2, head_dim=8)
    ... )
    ((), ())

  Source: Choromanski et al., 2021, https://arxiv.org/abs/2009.14794. Differs:
  no epsilon is added to softmax features, and no maximum over all keys is
  taken, by which a later key would reach earlier tokens; redrawing follows a
  key and a counter, where the authors' JAX code takes its seed from the data;
  orthogonal matrices are uniformly distributed, signs included.
  """
  return Performer(
    num_features=num_features,
    kind=kind,
    projection=projection,
    norms=norms,
    redraw_interval=redraw_interval,
    function=function,
    epsilon=epsilon,
    scaled=scaled,
    implementation=implementation,
  )
