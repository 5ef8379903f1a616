"""The TPU kernels: interpreted and lowered here, compared on a device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from jaxattn import patterns
from jaxattn._src import dispatch
from jaxattn._src import layout
from jaxattn._src.pallas import tile_lists
from tests import kernel_cases

# As a scan over the grid: faster than the interpreter that finds races.
_INTERPRET = True


@pytest.mark.parametrize("name", list(kernel_cases.cases(8)))
def test_interpreted_kernels_equal_the_portable_engine(name):
  pattern, mask = kernel_cases.cases(200)[name]
  arrays = kernel_cases.inputs(200, 4, 2, 40, 24, batch=2, dtype="float32")
  # Float32 throughout: the order of sums differs.
  kernel_cases.compare("tpu", pattern, mask, arrays, _INTERPRET, rounding=1e-5)


def test_interpreted_kernels_take_bfloat16():
  pattern, mask = kernel_cases.cases(200)["padding"]
  arrays = kernel_cases.inputs(200, 2, 1, 64)
  kernel_cases.compare("tpu", pattern, mask, arrays, _INTERPRET)


@pytest.mark.slow
def test_no_races(capfd):
  tpu = pytest.importorskip("jax.experimental.pallas.tpu")
  params = tpu.InterpretParams(detect_races=True)
  arrays = kernel_cases.inputs(300, 2, 1, 64, dtype="float32")
  kernel_cases.compare(
    "tpu",
    patterns.Window(100, 20),
    jaxattn.FULL,
    arrays,
    params,
    rounding=1e-5,
  )
  # The interpreter prints what it finds, and goes on.
  assert "RACE DETECTED" not in "".join(capfd.readouterr())


@pytest.mark.tpu
@pytest.mark.parametrize("name", list(kernel_cases.cases(8)))
@pytest.mark.parametrize("depth", [64, 128])
def test_kernels_on_the_device_equal_the_portable_engine(name, depth):
  pattern, mask = kernel_cases.cases(1000)[name]
  arrays = kernel_cases.inputs(1000, 4, 2, depth)
  kernel_cases.compare("tpu", pattern, mask, arrays, None)


@pytest.mark.parametrize("name", list(kernel_cases.cases(8)))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_and_backward_lower_for_tpu(name, dtype):
  pattern, mask = kernel_cases.cases(1000)[name]

  def loss(query, key, value):
    out = jaxattn.block_sparse(
      query, key, value, pattern=pattern, mask=mask, implementation="pallas"
    )
    return jnp.sum(out.astype(jnp.float32))

  arrays = kernel_cases.inputs(1000, 4, 2, 64, dtype=dtype)[:3]
  with dispatch.emulate("tpu"):
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
  # A forward pass and two gradients, of every piece.
  assert text.count("tpu_custom_call") % 3 == 0
  assert text.count("tpu_custom_call") > 0


@pytest.mark.parametrize("transpose", [False, True])
def test_lists_hold_every_tile_once(transpose):
  pattern = patterns.Window(40, -20) | patterns.Window(3, 3)
  (piece,) = layout.compile_pattern(pattern, 300, 400, 32, whole=True)
  found = tile_lists.tiles(piece.layout, transpose=transpose)
  real = found.flags & tile_lists.EMPTY == 0
  got = list(zip(found.row[real], found.column[real], strict=True))
  pairs = (piece.layout.rows, piece.layout.cols)
  want = list(zip(*(pairs[::-1] if transpose else pairs), strict=True))
  assert sorted(got) == sorted(want)
  num = piece.layout.num_cols if transpose else piece.layout.num_rows
  assert sorted(set(found.row.tolist())) == list(range(num))
  for flag in (tile_lists.FIRST, tile_lists.LAST):
    assert int((found.flags & flag > 0).sum()) == num
  table = dict(zip(zip(*pairs, strict=True), piece.layout.table, strict=True))
  for row, column, mask, flags in zip(*found, strict=True):
    if flags & tile_lists.EMPTY:
      continue
    pair = (column, row) if transpose else (row, column)
    if flags & tile_lists.PARTIAL:
      assert table[pair] == mask
    else:
      assert table[pair] == 0


@pytest.mark.parametrize(
  "arrays, kwargs, match",
  [
    ({"dtype": "float16"}, {}, "bfloat16 and float32"),
    ({"depth": 264}, {}, "up to 256 features"),
    ({}, {"tile": 64}, "multiples of 128 tokens"),
    (
      {},
      {
        "relative": jaxattn.Relative(
          logits=np.zeros((1, 1, 1, 3), np.float32), label=lambda d: d
        )
      },
      "no relative-position term",
    ),
  ],
)
def test_what_the_kernels_do_not_serve_is_said(arrays, kwargs, match):
  given = {"depth": 64, "dtype": "float32"} | arrays
  made = kernel_cases.inputs(8, 1, 1, **given)[:3]
  attend = functools.partial(
    jaxattn.block_sparse, pattern=patterns.Causal(), **kwargs
  )
  with dispatch.emulate("tpu"), pytest.raises(NotImplementedError, match=match):
    jax.eval_shape(functools.partial(attend, implementation="pallas"), *made)


def test_more_query_heads_than_fit_are_left_to_xla():
  arrays = kernel_cases.inputs(8, 16, 1, 64)[:3]
  attend = functools.partial(jaxattn.block_sparse, pattern=patterns.Causal())
  with dispatch.emulate("tpu"):
    with pytest.raises(NotImplementedError, match="16 query heads for one"):
      jax.eval_shape(
        functools.partial(attend, implementation="pallas"), *arrays
      )
    jax.eval_shape(attend, *arrays)


@pytest.mark.parametrize("length", [5, 128, 300])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_causal_linear_attention_equals_the_portable_engine(length, dtype):
  arrays = kernel_cases.inputs(length, 4, 2, 24, 40, batch=2, dtype=dtype)
  kernel_cases.compare_linear("tpu", arrays, _INTERPRET, masked=True)


def test_causal_linear_attention_lowers_for_tpu():
  arrays = kernel_cases.inputs(1000, 4, 2, 64)
  elu = jaxattn.feature_maps.elu_features

  def both(*arrays):
    return kernel_cases.linear(arrays, jaxattn.CAUSAL, None, elu)

  with dispatch.emulate("tpu"):
    lowered = jax.jit(both).trace(*arrays).lower(lowering_platforms=("tpu",))
  assert lowered.as_text().count("tpu_custom_call") == 4


def test_what_the_linear_kernel_does_not_serve_is_said():
  arrays = kernel_cases.inputs(8, 1, 1, 8)
  elu = jaxattn.feature_maps.elu_features
  logarithms = jax.tree_util.Partial(
    jaxattn.positive_features, jnp.ones((4, 8))
  )
  segments = jnp.zeros((1, 8), jnp.int32)
  packed = jaxattn.Mask(
    causal=True, query_segment_ids=segments, key_segment_ids=segments
  )
  with dispatch.emulate("tpu", _INTERPRET):
    for mask, feature_map, match in (
      (jaxattn.FULL, elu, "without causality"),
      (packed, elu, "no segments"),
      (jaxattn.CAUSAL, logarithms, "keep a logarithm"),
    ):
      with pytest.raises(NotImplementedError, match=match):
        kernel_cases.linear(arrays, mask, "pallas", feature_map)
