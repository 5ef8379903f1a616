"""The Hopper kernels: interpreted here, compiled and compared on a device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn import patterns
from jaxattn._src import dispatch
from jaxattn._src import layout
from jaxattn._src.pallas import row_tables
from tests import kernel_cases

mosaic_gpu = pytest.importorskip("jax.experimental.pallas.mosaic_gpu")
_VERSION = tuple(int(x) for x in jax.__version__.split(".")[:2])
_interpreted = pytest.mark.skipif(
  _VERSION < (0, 11), reason="the kernels need jax 0.11"
)


@_interpreted
@pytest.mark.slow
@pytest.mark.parametrize("name", list(kernel_cases.cases(8)))
def test_interpreted_kernels_equal_the_portable_engine(name):
  pattern, mask = kernel_cases.cases(200)[name]
  arrays = kernel_cases.inputs(200, 4, 2, 40, 100)
  kernel_cases.compare(
    "hopper", pattern, mask, arrays, mosaic_gpu.InterpretGPUParams()
  )


@_interpreted
@pytest.mark.slow
def test_no_races(capfd):
  arrays = kernel_cases.inputs(256, 1, 1, 64)
  params = mosaic_gpu.InterpretGPUParams(detect_races=True)
  kernel_cases.compare(
    "hopper", patterns.Window(100, 0), jaxattn.FULL, arrays, params
  )
  # The interpreter prints what it finds, and goes on.
  assert "RACE DETECTED" not in "".join(capfd.readouterr())


@_interpreted
@pytest.mark.slow
def test_long_rows_are_computed_in_parts():
  pattern = patterns.Window(16, 16) | patterns.Global(8)
  (piece,) = layout.compile_pattern(pattern, 1536, 1536, 128, whole=True)
  assert row_tables.rows(piece.layout, None).parts.shape[1:] == (1, 2)
  arrays = kernel_cases.inputs(1536, 1, 1, 64)
  params = mosaic_gpu.InterpretGPUParams()
  kernel_cases.compare("hopper", pattern, jaxattn.FULL, arrays, params)


@_interpreted
@pytest.mark.parametrize("name", list(kernel_cases.cases(8)))
def test_forward_and_backward_lower_for_cuda(name):
  pattern, mask = kernel_cases.cases(1000)[name]

  def loss(query, key, value):
    out = jaxattn.block_sparse(
      query, key, value, pattern=pattern, mask=mask, implementation="pallas"
    )
    return jnp.sum(out.astype(jnp.float32))

  arrays = kernel_cases.inputs(1000, 4, 2, 64)[:3]
  with dispatch.emulate("hopper"):
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  # A forward pass and two gradients, of every piece.
  assert text.count("mosaic_gpu") >= 3


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(kernel_cases.cases(8)))
@pytest.mark.parametrize("depth", [64, 128])
def test_kernels_on_the_device_equal_the_portable_engine(name, depth):
  pattern, mask = kernel_cases.cases(1000)[name]
  kernel_cases.compare(
    "hopper", pattern, mask, kernel_cases.inputs(1000, 4, 2, depth), None
  )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_long_pattern_on_the_device(dtype):
  pattern = patterns.Window(192, 192) | patterns.Global(128)
  pattern |= patterns.RandomBlocks(3, 64)
  arrays = kernel_cases.inputs(8192, 2, 1, 64, batch=2, dtype=dtype)
  kernel_cases.compare("hopper", pattern, jaxattn.FULL, arrays, None)


@_interpreted
@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
  "length, heads, kv_heads, depth, width",
  [(5, 1, 1, 24, 40), (600, 2, 1, 64, 64), (300, 1, 1, 128, 72)],
)
def test_causal_linear_attention_equals_the_portable_engine(
  length, heads, kv_heads, depth, width, masked
):
  arrays = kernel_cases.inputs(length, heads, kv_heads, depth, width)
  params = mosaic_gpu.InterpretGPUParams()
  kernel_cases.compare_linear("hopper", arrays, params, masked=masked)


@_interpreted
@pytest.mark.slow
def test_no_races_in_causal_linear_attention(capfd):
  arrays = kernel_cases.inputs(1024, 1, 1, 64)
  params = mosaic_gpu.InterpretGPUParams(detect_races=True)
  kernel_cases.compare_linear("hopper", arrays, params, masked=False)
  assert "RACE DETECTED" not in "".join(capfd.readouterr())


@_interpreted
@pytest.mark.parametrize("depth", [64, 128])
def test_causal_linear_attention_lowers_for_cuda(depth):
  arrays = kernel_cases.inputs(1000, 4, 2, depth)
  elu = jaxattn.feature_maps.elu_features

  def both(*arrays):
    return kernel_cases.linear(arrays, jaxattn.CAUSAL, None, elu)

  with dispatch.emulate("hopper"):
    lowered = jax.jit(both).trace(*arrays).lower(lowering_platforms=("cuda",))
  # Sums and outputs; sums and three gradients.
  assert lowered.as_text().count("custom_call @mosaic_gpu") == 6


@_interpreted
@pytest.mark.parametrize(
  "dtype, depth, match",
  [
    ("float16", 64, "takes bfloat16, not float16"),
    ("bfloat16", 160, "up to 128 features, not 160"),
  ],
)
def test_what_the_linear_kernel_does_not_serve_is_said(dtype, depth, match):
  arrays = kernel_cases.inputs(8, 1, 1, depth, dtype=dtype)[:3]
  attend = functools.partial(jaxattn.linear_attention, mask=jaxattn.CAUSAL)
  with dispatch.emulate("hopper"):
    with pytest.raises(NotImplementedError, match=match):
      attend(*arrays, implementation="pallas")
    jax.eval_shape(attend, *arrays)


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [64, 128])
@pytest.mark.parametrize("length, masked", [(300, True), (8192, False)])
def test_causal_linear_attention_on_the_device(length, depth, masked):
  arrays = kernel_cases.inputs(length, 4, 2, depth, batch=2)
  kernel_cases.compare_linear("hopper", arrays, None, masked=masked)


@pytest.mark.parametrize(
  "pattern, band",
  [
    (patterns.Window(100, 0), row_tables.Band(-100, 0, None)),
    (patterns.Window(50, 70), row_tables.Band(-50, 70, None)),
    (patterns.Causal(), row_tables.Band(None, 0, None)),
    (patterns.Window(64, 64) | patterns.Global(3), None),
  ],
)
def test_bands_are_recognized(pattern, band):
  (piece,) = layout.compile_pattern(pattern, 512, 512, 128, whole=True)
  assert row_tables.band(piece, None) == band


def test_a_band_ends_with_the_keys():
  (piece,) = layout.compile_pattern(
    patterns.Window(50, 70), 300, 300, 128, whole=True
  )
  assert row_tables.band(piece, None) == row_tables.Band(-50, 70, 300)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("heads", [None, 2])
def test_runs_hold_every_tile_once(transpose, heads):
  pattern = patterns.Window(16, 16) | patterns.Global(8)
  (piece,) = layout.compile_pattern(pattern, 900, 900, 32, whole=True)
  found = piece.layout
  if heads:
    found = layout.stack((found,) * heads)
  rows = row_tables.rows(found, heads, transpose=transpose)
  seen = []
  for at in range(len(rows.row)):
    first, count = rows.start[at], rows.degree[at]
    cols = rows.cols[first : first + count]
    tables = rows.table[first : first + count]
    assert not tables[: rows.full[at]].any()
    assert tables[rows.full[at] :].all()
    head = 0 if rows.head is None else rows.head[at]
    seen += [(head, rows.row[at], col) for col in cols]
  per_head = piece.layout.num_cols
  want = [
    (c // per_head, c % per_head, r % per_head)
    if transpose
    else (r // per_head, r % per_head, c % per_head)
    for r, c in zip(found.rows, found.cols, strict=True)
  ]
  assert sorted(seen) == sorted(want)
  places = [
    (0 if rows.head is None else rows.head[i], rows.slot[i])
    for i in range(len(rows.row))
  ]
  assert len(set(places)) == len(places)
  assert rows.parts.shape[1] > 0
  assert np.all(np.diff(rows.degree) <= 0)


def _choose(arrays, **kwargs):
  with dispatch.emulate("hopper"):
    return jax.eval_shape(
      functools.partial(
        jaxattn.block_sparse,
        pattern=patterns.Causal(),
        implementation="pallas",
        **kwargs,
      ),
      *arrays[:3],
    )


@_interpreted
@pytest.mark.parametrize(
  "arrays, kwargs, match",
  [
    (
      kernel_cases.inputs(8, 1, 1, 64, dtype="float32"),
      {},
      "bfloat16 and float16",
    ),
    (kernel_cases.inputs(8, 1, 1, 136), {}, "up to 128 features"),
    (
      kernel_cases.inputs(8, 1, 1, 64),
      {"scale": -1.0},
      "scale must be positive",
    ),
    (kernel_cases.inputs(8, 1, 1, 64), {"tile": 64}, "tiles have 128 tokens"),
  ],
)
def test_what_the_kernels_do_not_serve_is_said(arrays, kwargs, match):
  with pytest.raises(NotImplementedError, match=match):
    _choose(arrays, **kwargs)


def test_elsewhere_kernels_are_refused_by_name():
  arrays = kernel_cases.inputs(8, 1, 1, 64)[:3]
  with pytest.raises(
    NotImplementedError, match="an NVIDIA Hopper GPU or a TPU"
  ):
    jaxattn.block_sparse(
      *arrays, pattern=patterns.Causal(), implementation="pallas"
    )
