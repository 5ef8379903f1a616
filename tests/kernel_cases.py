"""What every kernel of block-sparse attention is compared on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn
from jaxattn import patterns
from jaxattn._src import dispatch


def inputs(
  length, heads, kv_heads, depth, width=None, batch=1, dtype="bfloat16"
):
  shapes = [(heads, depth), (kv_heads, depth), (kv_heads, width or depth)]
  shapes.append((heads, width or depth))
  rngs = jax.random.split(jax.random.key(0), 4)
  return [
    jax.random.normal(rng, (batch, length, *shape)).astype(dtype)
    for rng, shape in zip(rngs, shapes, strict=True)
  ]


def _pull(attend, query, key, value, dout):
  """Outputs and gradients, of the output and of lse."""
  out, pull = jax.vjp(attend, query, key, value)
  dlse = jnp.where(jnp.isneginf(out.lse), 0.0, 0.5)
  return (*out, *pull(type(out)(dout.astype(jnp.float32), dlse)))


def compare(device, pattern, mask, arrays, interpret, *, rounding=1e-2):
  """Outputs, lse and gradients of kernels against the portable engine."""
  attend = functools.partial(
    jaxattn.block_sparse, pattern=pattern, mask=mask, return_lse=True
  )
  kernels = functools.partial(attend, implementation="pallas")
  if interpret is None:
    got = jax.jit(functools.partial(_pull, kernels))(*arrays)
  else:
    with dispatch.emulate(device, interpret):
      got = _pull(kernels, *arrays)
  # The oracle runs on the host: a device would take longer to compile it.
  with jax.default_device(jax.devices("cpu")[0]):
    wide = [jnp.asarray(np.asarray(x, np.float32)) for x in arrays]
    portable = functools.partial(attend, implementation="xla")
    want = jax.jit(functools.partial(_pull, portable))(*wide)
  for g, w in zip(got, want, strict=True):
    g, w = (np.asarray(x, np.float32) for x in (g, w))
    np.testing.assert_array_equal(np.isneginf(g), np.isneginf(w))
    g, w = (np.where(np.isneginf(x), 0, x) for x in (g, w))
    # Weights and results are rounded to 8 bits, or not at all; single numbers
    # are sums of many such terms.
    highest = 2 * rounding * max(1.0, np.abs(w).max())
    np.testing.assert_allclose(g, w, atol=highest, rtol=0)
    assert np.linalg.norm(g - w) <= rounding * np.linalg.norm(w)


def _valid(length, counts):
  return jnp.arange(length)[None] < jnp.array(counts)[:, None]


def cases(length):
  rng = np.random.default_rng(0)
  segments = jnp.asarray(np.sort(rng.integers(0, 3, (1, length))))
  by_head = tuple(
    patterns.RandomBlocks(1, 32, seed=i) | patterns.Window(32, 32)
    for i in range(4)
  )
  packed = jaxattn.Mask(query_segment_ids=segments, key_segment_ids=segments)
  place = jnp.arange(length)[None] * 2
  moved = jaxattn.Mask(
    causal=True, query_positions=place, key_positions=place + 1
  )
  padded = jaxattn.Mask(
    key_valid=_valid(length, [length - 40]),
    query_valid=_valid(length, [length - 7]),
  )
  window = patterns.Window(100, 0)
  return {
    "window": (window, jaxattn.FULL),
    "segments": (window, packed),
    "positions": (patterns.Window(64, 64), moved),
    "padding": (patterns.Window(64, 64) | patterns.Global(16), padded),
    "strided": (patterns.Strided(8) | patterns.Window(8, 0), jaxattn.CAUSAL),
    "by head": (by_head, jaxattn.FULL),
    "no edges": (patterns.Window(20, -10), jaxattn.FULL),
  }


def linear(arrays, mask, implementation, feature_map):
  """Linear attention and its gradients."""

  def attend(query, key, value):
    return jaxattn.linear_attention(
      query,
      key,
      value,
      feature_map=feature_map,
      mask=mask,
      implementation=implementation,
    )

  *inputs, dout = arrays
  out, pull = jax.vjp(attend, *inputs)
  return (out, *pull(dout))


def compare_linear(device, arrays, interpret, *, masked):
  """Asserts that a kernel of causal linear attention is right.

  Args:
    device: whose kernel.
    arrays: from `inputs`.
    interpret: parameters of the interpreter, or None.
    masked: whether the last row of the batch lacks its last three keys.
  """
  batch, length = arrays[0].shape[:2]
  mask, elu = jaxattn.CAUSAL, jaxattn.feature_maps.elu_features
  if masked:
    whole = jnp.arange(batch)[:, None] < batch - 1
    valid = (jnp.arange(length) < length - 3)[None] | whole
    mask = jaxattn.Mask(causal=True, key_valid=valid)
  with dispatch.emulate(device, interpret):
    got = linear(arrays, mask, "pallas", elu)
  wide = [x.astype(jnp.float32) for x in arrays]
  with jax.default_matmul_precision("highest"):
    want = linear(wide, mask, "xla", elu)
  rounding = 1e-5 if arrays[0].dtype == jnp.float32 else 2e-2
  for g, w in zip(got, want, strict=True):
    g, w = (np.asarray(x, np.float32) for x in (g, w))
    assert np.linalg.norm(g - w) <= rounding * np.linalg.norm(w)
