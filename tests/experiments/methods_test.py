"""Methods by name, and what is said when one cannot be made."""

import pytest

import jaxattn
from experiments.common import files
from experiments.common import methods

_SIZES = methods.Sizes(length=64, num_layers=4, num_heads=4)


def _make(name, **options):
  return methods.make(name, _SIZES, options)


def test_names_make_methods():
  assert _make("dense") == (jaxattn.dense(),)
  got = _make("sliding_window", window=8, dilation=2)
  assert got == (jaxattn.sliding_window(left=7, dilation=2),)
  # As wide as the row is allowed: the window sees all of it.
  widest = _make("sliding_window", window=64)
  assert widest == (jaxattn.sliding_window(left=63),)


def test_longformer_grows_with_depth():
  got = _make("longformer", window=[8, 8, 16, 32], dilation=[1, 1, 1, 2])
  plain = [jaxattn.longformer(window=w) for w in (8, 8, 16)]
  top = jaxattn.longformer(window=32, dilation=(1, 1, 2, 2))
  assert got == (*plain, top)
  one = _make("longformer", window=8, num_global=1)
  assert one == (jaxattn.longformer(window=8, num_global=1),) * 4


def test_linformer_has_a_k_for_each_layer():
  got = _make("linformer", k=16, sharing="layerwise")
  one = jaxattn.linformer(max_length=64, k=16, sharing="layerwise")
  assert got == (one,) * 4
  layers = _make("linformer", k=[32, 16, 16, 8], projection="convolution")
  assert [m.k for m in layers] == [32, 16, 16, 8]
  assert {m.projection for m in layers} == {"convolution"}


def test_synthesizer_takes_a_name_or_a_list():
  assert _make("synthesizer") == (jaxattn.synthesizer(max_length=64),)
  got = _make("synthesizer", parts=["dense", "dot_product"])
  parts = ("dense", "dot_product")
  assert got == (jaxattn.synthesizer(max_length=64, parts=parts),)


def test_linear_methods_take_their_options():
  assert _make("linear") == (jaxattn.linear_transformer(),)
  got = _make("linear", feature_map="exp")
  assert got == (jaxattn.linear_transformer(feature_map="exp"),)
  got = _make("performer", num_features=32, projection="iid")
  assert got == (jaxattn.performer(num_features=32, projection="iid"),)


def test_reformer_has_windows_in_between():
  got = _make("reformer", chunk=8, rounds=4, num_buckets=[4, 2])
  hashing = jaxattn.reformer(chunk=8, rounds=4, num_buckets=(4, 2))
  assert got == (hashing,)
  local = jaxattn.sliding_window(left=15)
  got = _make("reformer", chunk=8, local_window=16)
  assert got == (local, jaxattn.reformer(chunk=8)) * 2


def test_routing_has_local_heads():
  method = jaxattn.routing(num_clusters=4, window=16)
  assert _make("routing", num_clusters=4) == (method,)
  local = jaxattn.sliding_window(left=7)
  got = _make("routing", num_clusters=4, local_window=8)
  assert got == (jaxattn.split_heads((local, 2), (method, 2)),)
  got = _make("routing", num_clusters=4, local_window=8, local_heads=1)
  assert got == (jaxattn.split_heads((local, 1), (method, 3)),)
  with pytest.raises(files.UserError, match="local_heads"):
    _make("routing", num_clusters=4, local_window=8, local_heads=4)
  with pytest.raises(files.UserError, match="window"):
    _make("routing", num_clusters=4, local_heads=1)


def test_sinkhorn_knows_the_length():
  got = _make("sinkhorn", block=16, mixture=True)
  want = jaxattn.sinkhorn(max_length=64, block=16, mixture=True)
  assert got == (want,)


def test_sparse_transformer_interleaves():
  got = _make("sparse_transformer", stride=8, summary=2, subblocks=2)
  want = jaxattn.sparse_transformer(stride=8, summary=2, subblocks=2)
  assert got == (want,)
  layers = _make(
    "sparse_transformer",
    stride=8,
    kind="strided",
    factors="interleaved",
    order=["local", "remote", "local", "local"],
  )
  assert [m.factors for m in layers] == ["local", "remote", "local", "local"]
  assert {m.kind for m in layers} == {"strided"}


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("sliding_windw", {}, "known: .*sliding_window.*'sliding_window'"),
    ("dense", {"window": 8}, "has no option 'window'; it has: none"),
    ("sliding_window", {}, r"needs --config\.method_options\.window"),
    ("sliding_window", {"window": 65}, "window 65 .* rows of 64 tokens"),
    ("sliding_window", {"window": 0}, "window 0"),
    ("sliding_window", {"window": 8, "dilation": 0}, "dilation"),
    ("longformer", {"window": [8, 8]}, "one for each of 4 layers"),
    ("longformer", {"window": 7}, "even"),
    ("longformer", {"window": 130}, "rows of 64 tokens"),
    ("longformer", {"window": 8, "dilated_heads": 5}, "dilated_heads"),
    ("linformer", {"k": [8, 8]}, "one for each of 4 layers"),
    ("linformer", {"k": 0}, "k must be positive"),
    ("linformer", {"k": [8, 8, 4, 4], "sharing": "layerwise"}, "needs one k"),
    ("sparse_transformer", {"stride": 65}, "stride 65 does not fit"),
    ("sparse_transformer", {"stride": 8, "kind": "x"}, "kind must be one of"),
    ("sparse_transformer", {"stride": 4, "summary": 5}, "summary"),
    (
      "sparse_transformer",
      {"stride": 8, "factors": "interleaved", "order": ["a"]},
      "factors must be one of",
    ),
  ],
)
def test_errors(name, options, message):
  with pytest.raises(files.UserError, match=message) as error:
    _make(name, **options)
  assert "\n" not in str(error.value)
