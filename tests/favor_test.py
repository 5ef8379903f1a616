"""FAVOR+ projections and features; statistical tests say their spread.

An estimate is `phi(x).phi(y)`, its target `exp(x.y)` for vectors that are given
before the division by `H^(1/4)`. Means are held to 4 standard errors.
"""

import functools
import itertools
import json
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn._src import favor
from tests.method_cases import assert_close

_MAPS = {
  "positive": favor.positive_features,
  "hyperbolic": favor.hyperbolic_features,
  "trigonometric": favor.trigonometric_features,
}
_KINDS = ("orthogonal", "iid", "hadamard")
_DRAWS = 8000


def _pair(size, depth=16):
  """Two vectors of one length at an angle of about 70 degrees, float64."""
  rng = np.random.default_rng(3)
  x = rng.normal(size=depth)
  y = rng.normal(size=depth)
  x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
  y = y + 0.3 * x
  return size * x, size * y / np.linalg.norm(y)


@functools.partial(
  jax.jit, static_argnames=("draws", "rows", "depth", "kind", "norms")
)
def _projections(rng, *, draws, rows, depth, kind, norms="chi"):
  draw = functools.partial(
    favor.draw_projection,
    num_features=rows,
    head_dim=depth,
    kind=kind,
    norms=norms,
  )
  return jax.vmap(draw)(jax.random.split(rng, draws))


@functools.partial(jax.jit, static_argnames=("features",))
def _products(projections, x, y, *, features):
  def one(w):
    return jnp.vdot(features(w, x).whole(), features(w, y).whole())

  return jax.vmap(one)(projections)


def _estimates(features, kind, x, y, *, rows=16, draws=_DRAWS, seed=0):
  """Estimates by many projections, and the target."""
  depth = x.shape[-1]
  w = _projections(
    jax.random.key(seed), draws=draws, rows=rows, depth=x.shape[-1], kind=kind
  )
  a, b = (jnp.asarray(v * depth**0.25, jnp.float32) for v in (x, y))
  found = _products(w, a, b, features=_MAPS[features])
  return np.asarray(found, np.float64), math.exp(x @ y)


def _mean_and_error(values):
  return values.mean(), values.std() / len(values) ** 0.5


@pytest.mark.parametrize("kind", ["orthogonal", "hadamard"])
def test_rows_are_orthogonal_in_blocks(kind):
  w = favor.draw_projection(jax.random.key(0), 20, 8, kind=kind)
  assert w.shape == (20, 8) and w.dtype == jnp.float32
  w = np.asarray(w, np.float64)
  w = w / np.linalg.norm(w, axis=-1, keepdims=True)
  for start in (0, 8, 16):
    block = w[start : start + 8]
    assert_close(block @ block.T, np.eye(len(block)), 1e-6)
  assert np.abs(w[:8] @ w[8:16].T).max() > 0.1


@pytest.mark.parametrize("kind", _KINDS)
def test_norms(kind):
  """The norm of a standard normal vector has a variance below 1/2."""
  w = favor.draw_projection(jax.random.key(1), 4000, 8, kind=kind)
  norms = np.linalg.norm(np.asarray(w, np.float64), axis=-1)
  want = 2**0.5 * math.exp(math.lgamma(4.5) - math.lgamma(4.0))
  assert abs(norms.mean() - want) < 4 * (0.5 / 4000) ** 0.5
  assert abs((norms**2).mean() - 8) < 4 * (16 / 4000) ** 0.5
  w = favor.draw_projection(jax.random.key(1), 40, 8, kind=kind, norms="sqrt")
  assert_close(np.linalg.norm(w, axis=-1), np.full(40, 8**0.5), 1e-6)


@pytest.mark.parametrize("kind", _KINDS)
def test_signs_are_random(kind):
  """A QR decomposition as it comes has `Q[0, 0] < 0` in every draw.

  A sum of 2000 fair signs has a standard deviation of 45; products of Hadamard
  matrices of dimension 4 have zeros besides.
  """
  w = _projections(jax.random.key(2), draws=2000, rows=4, depth=4, kind=kind)
  assert np.abs(np.sign(w).sum(axis=0)).max() < 4 * 45


@pytest.mark.parametrize("kind", ["orthogonal", "iid"])
@pytest.mark.parametrize("features", list(_MAPS))
def test_estimates_are_unbiased(features, kind):
  for x, y in (_pair(0.7), _pair(0.7)[:1] * 2):
    found, want = _estimates(features, kind, x, y)
    if features == "trigonometric" and x is y:
      assert_close(found, np.full(_DRAWS, want))  # sin^2 + cos^2 is 1.
      continue
    mean, error = _mean_and_error(found)
    assert abs(mean - want) < 4 * error
    assert error < 0.03 * want  # Or the test would say nothing.


def test_last_block_may_be_cut():
  x, y = _pair(0.7)
  found, want = _estimates("positive", "orthogonal", x, y, rows=21)
  mean, error = _mean_and_error(found)
  assert abs(mean - want) < 4 * error


def test_hadamard_bias_is_what_enumeration_says():
  """Rows of three products with all signs of dimension 4, norms integrated."""
  depth = 4
  matrix = np.array([[1]])
  for _ in range(2):
    matrix = np.block([[matrix, matrix], [matrix, -matrix]])
  signs = np.array(list(itertools.product((-1.0, 1.0), repeat=depth)))
  factors = [matrix / depth**0.5 * sign for sign in signs]
  rows = np.concatenate(
    [a @ b @ c for a, b, c in itertools.product(factors, repeat=3)]
  )
  radius = np.linspace(0, 16, 4001)[1:]
  density = radius ** (depth - 1) * np.exp(-(radius**2) / 2)
  density = density / density.sum()
  x = np.array([0.7, 0.0, 0.0, 0.0])
  along = np.unique(np.round(rows @ (2 * x), 9), return_counts=True)
  exact = np.exp(np.outer(along[0], radius)) @ density
  exact = exact @ along[1] / along[1].sum() * math.exp(-(x @ x))
  assert 0.97 < exact / math.exp(x @ x) < 0.99  # Biased, and not by much.
  found, _ = _estimates("positive", "hadamard", x, x, rows=4, draws=40000)
  mean, error = _mean_and_error(found)
  assert abs(mean - exact) < 4 * error
  # At 16 dimensions a bias of 1 percent is left at this length.
  found, want = _estimates("positive", "hadamard", *_pair(0.7))
  assert abs(found.mean() - want) < 0.02 * want


def test_hadamard_of_other_sizes_is_that_of_padded_vectors():
  rng, x = jax.random.key(5), jnp.arange(6, dtype=jnp.float32) / 10
  for norms in ("chi", "sqrt"):
    cut = favor.draw_projection(rng, 12, 6, kind="hadamard", norms=norms)
    whole = favor.draw_projection(rng, 12, 8, kind="hadamard", norms=norms)
    padded = jnp.pad(x, (0, 2))
    assert cut.shape == (12, 6)
    assert_close(cut @ x, whole @ padded, 1e-6)


def _predicted(features, x, y, rows):
  """The variances of Choromanski et al., lemma 2 and theorem 2."""
  weight = math.exp(x @ y)
  z2, d2 = np.sum((x + y) ** 2), np.sum((x - y) ** 2)
  if features == "trigonometric":
    return math.exp(z2) / weight**2 * (1 - math.exp(-d2)) ** 2 / (2 * rows)
  positive = math.exp(z2) * weight**2 * (1 - math.exp(-z2)) / rows
  if features == "positive":
    return positive
  return positive * (1 - math.exp(-z2)) / 2


@pytest.mark.parametrize("features", list(_MAPS))
def test_variance_is_that_of_the_paper(features):
  """Within 15 percent: at this length 8000 draws settle it to about 5."""
  x, y = _pair(0.5)
  found, want = _estimates(features, "iid", x, y)
  error = np.mean((found - want) ** 2)
  assert error / _predicted(features, x, y, 16) == pytest.approx(1, abs=0.15)


def test_orthogonal_is_better_by_the_bound_of_the_paper():
  x, y = _pair(0.5)
  rows, depth = 16, 16
  found, want = _estimates("positive", "orthogonal", x, y, rows=rows)
  squares = (found - want) ** 2
  mean, error = _mean_and_error(squares)
  gain = want - math.exp(-(x @ x + y @ y) / 2)
  gain = 2 * (rows - 1) / (rows * (depth + 2)) * gain**2
  predicted = _predicted("positive", x, y, rows)
  assert mean < predicted - gain + 4 * error
  # At m = H the gain is far more than the bound and than the spread.
  assert mean < predicted - 4 * error


def test_hyperbolic_has_less_than_half_the_variance():
  x, y = _pair(0.5)
  both = [
    np.var(_estimates(name, "orthogonal", x, y)[0])
    for name in ("positive", "hyperbolic")
  ]
  assert both[1] < 0.5 * both[0]


def test_equal_norms_underestimate_a_little():
  """`1 - 2 H^(-1/3) <= estimate / exp(x.y) <= 1` in the mean."""
  x, _ = _pair(0.7)
  a = jnp.asarray(x * 2.0, jnp.float32)
  w = _projections(
    jax.random.key(0),
    draws=_DRAWS,
    rows=16,
    depth=16,
    kind="orthogonal",
    norms="sqrt",
  )
  found = _products(w, a, a, features=favor.positive_features)
  mean, error = _mean_and_error(np.asarray(found, np.float64))
  ratio, error = mean / math.exp(x @ x), error / math.exp(x @ x)
  assert 1 - 2 * 16 ** (-1 / 3) < ratio < 1 - 4 * error


def _naive(features, w, x):
  """The features as the paper writes them, float64 or traced."""
  x = x * x.shape[-1] ** -0.25
  wx, half = x @ w.T, (x * x).sum(-1)[..., None] / 2
  if features == "trigonometric":
    waves = jnp.concatenate([jnp.sin(wx), jnp.cos(wx)], -1)
    return waves * jnp.exp(half) * w.shape[0] ** -0.5
  if features == "positive":
    return jnp.exp(wx - half) * w.shape[0] ** -0.5
  both = jnp.concatenate([jnp.exp(wx - half), jnp.exp(-wx - half)], -1)
  return both * (2 * w.shape[0]) ** -0.5


@pytest.mark.parametrize("features", list(_MAPS))
def test_value_and_gradient_are_those_of_the_plain_formula(features):
  """The stabiliser cancels in both; leading axes are free."""
  w = favor.draw_projection(jax.random.key(1), 12, 8)
  x = jax.random.normal(jax.random.key(2), (2, 3, 8))
  outs = []
  for function in (
    lambda w, x: _MAPS[features](w, x).whole(),
    functools.partial(_naive, features),
  ):
    out, vjp = jax.vjp(function, w, x)
    outs.append((out, vjp(jnp.cos(out))))
  assert_close(outs[0], outs[1], 1e-5)


@pytest.mark.parametrize("features", list(_MAPS))
def test_vectors_are_divided_by_the_fourth_root_of_their_size(features):
  """With zeros added to 16 times the size, they are twice as long."""
  w = favor.draw_projection(jax.random.key(1), 12, 4)
  x = jax.random.normal(jax.random.key(2), (3, 4))
  padded = [jnp.pad(v, ((0, 0), (0, 60))) for v in (w, 2.0 * x)]
  assert_close(_MAPS[features](*padded), _MAPS[features](w, x), 1e-6)


@pytest.mark.parametrize("features", list(_MAPS))
@pytest.mark.parametrize("size", [50.0, 1e3])
def test_large_vectors_stay_finite(features, size):
  w = favor.draw_projection(jax.random.key(1), 64, 16)
  x = jax.random.normal(jax.random.key(2), (5, 16))
  x = x * (size / jnp.linalg.norm(x, axis=-1, keepdims=True))
  found, vjp = jax.vjp(functools.partial(_MAPS[features], w), x)
  (gradient,) = vjp(jax.tree.map(jnp.ones_like, found))
  for array in (*found, gradient):
    assert np.isfinite(array).all()
  if features != "trigonometric":  # The largest is 1, before the root of m.
    count = found.values.shape[-1]
    assert_close(jnp.max(found.values, -1), np.full(5, count**-0.5), 1e-6)


def test_bfloat16_is_computed_in_float32():
  w = favor.draw_projection(jax.random.key(1), 12, 8)
  x = jax.random.normal(jax.random.key(2), (3, 8)).astype(jnp.bfloat16)
  for function in _MAPS.values():
    low, high = function(w, x), function(w, x.astype(jnp.float32))
    assert low.values.dtype == jnp.float32
    assert_close(low, high, 0)


def test_generalized_features():
  w = favor.draw_projection(jax.random.key(1), 12, 8)
  x = jax.random.normal(jax.random.key(2), (3, 8))
  plain = favor.generalized_features(w, x)
  want = np.maximum(np.asarray(x) @ np.asarray(w).T, 0) / 12**0.5 + 1e-3
  assert_close(plain.values, want)
  assert plain.log_scale is None
  scaled = favor.generalized_features(
    w, x, function=jnp.exp, epsilon=0.0, scaled=True
  )
  want = np.exp(np.asarray(x) * 8**-0.25 @ np.asarray(w).T) / 12**0.5
  assert_close(scaled.values, want)
  none = favor.generalized_features(None, x, epsilon=0.0)
  assert_close(none.values, np.maximum(x, 0), 0)


def test_a_feature_map_passes_through_transformations():
  w = favor.draw_projection(jax.random.key(1), 12, 8)
  x = jax.random.normal(jax.random.key(2), (3, 8))
  for function in _MAPS.values():
    bound = jax.tree_util.Partial(function, w)
    got = jax.jit(lambda f, x: jax.vmap(f)(x))(bound, x)
    assert_close(got, function(w, x), 1e-6)


def test_drawing_is_traceable_and_follows_its_key():
  for kind in _KINDS:
    draw = functools.partial(
      favor.draw_projection, num_features=5, head_dim=8, kind=kind
    )
    shape = jax.eval_shape(draw, jax.random.key(0))
    assert (shape.shape, shape.dtype) == ((5, 8), jnp.float32)
    same, again, other = (draw(jax.random.key(i)) for i in (0, 0, 1))
    assert_close(same, again, 0)
    assert np.abs(same - other).max() > 0.1


def test_errors_name_what_is_wrong():
  rng = jax.random.key(0)
  for arguments, message in (
    ({"num_features": 0, "head_dim": 8}, "num_features must be at least 1"),
    ({"num_features": 8, "head_dim": 0}, "head_dim must be at least 1"),
    ({"num_features": 8, "head_dim": 8, "kind": "h"}, "kind must be one of"),
    ({"num_features": 8, "head_dim": 8, "norms": "h"}, "norms must be one of"),
  ):
    with pytest.raises(ValueError, match=message):
      favor.draw_projection(rng, **arguments)
  w = jnp.ones((4, 8))
  for function in (*_MAPS.values(), favor.generalized_features):
    with pytest.raises(ValueError, match=r"\[num_features, 6\]"):
      function(w, jnp.ones((2, 6)))
  with pytest.raises(ValueError, match="epsilon"):
    favor.generalized_features(None, w, epsilon=-1.0)


@pytest.mark.slow
def test_benchmark_runs(tmp_path):
  """In small: a record for each panel, a table and a figure."""
  output = tmp_path / "out.jsonl"
  command = [sys.executable, "-m", "benchmarks.favor_error", "--length=16"]
  command += ["--rows=4,8", "--scales=0.5", "--draws=2", "--angles=3"]
  command += ["--angle_draws=2000", f"--output={output}"]
  root = pathlib.Path(__file__).resolve().parents[1]
  done = subprocess.run(command, cwd=root, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in output.read_text().splitlines()]
  count = {
    panel: sum(r["panel"] == panel for r in records)
    for panel in ("matrix", "output", "weight")
  }
  assert count == {"matrix": 24, "output": 24, "weight": 27}
  for (
    r
  ) in records:  # At a right angle; 2000 draws settle it to about 5 percent.
    if r["projection"] == "iid" and abs(r.get("angle", 0) - math.pi / 2) < 0.1:
      assert r["error"] == pytest.approx(r["formula_iid"], rel=0.25)
  assert "| orthogonal |" in output.with_suffix(".md").read_text()
  assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
