"""Attention cores in JAX for `benchmarks.peers`: those of others, and ours."""

from collections.abc import Callable
from typing import Any

from benchmarks import peer_cases


def _inputs(length: int, heads: int, depth: int, *, first: bool = False) -> Any:
  import jax

  shape = (1, heads, length, depth) if first else (1, length, heads, depth)
  rngs = jax.random.split(jax.random.key(0), 3)
  return [jax.random.normal(rng, shape) for rng in rngs]


def _peer(name: str, package: str, what: str, longest: int = 1 << 30) -> Any:
  return peer_cases.case(name, package, what, backend="jax", longest=longest)


@_peer("jax_nn", "jax", "dense", longest=8192)
def _(length: int, heads: int, depth: int) -> Any:
  import jax

  return jax.nn.dot_product_attention, _inputs(length, heads, depth)


@_peer("jax_nn_window512", "jax", "|i - j| <= 256", longest=8192)
def _(length: int, heads: int, depth: int) -> Any:
  import jax

  return (
    lambda q, k, v: jax.nn.dot_product_attention(
      q, k, v, local_window_size=256
    ),
    _inputs(length, heads, depth),
  )


@_peer("tokamax_chunked", "tokamax", "dense, by chunks")
def _(length: int, heads: int, depth: int) -> Any:
  import tokamax

  return (
    lambda q, k, v: tokamax.dot_product_attention(
      q, k, v, implementation="xla_chunked"
    ),
    _inputs(length, heads, depth),
  )


@_peer("tokamax_window512", "tokamax", "|i - j| <= 256, by chunks")
def _(length: int, heads: int, depth: int) -> Any:
  import tokamax

  return (
    lambda q, k, v: tokamax.dot_product_attention(
      q, k, v, local_window_size=256, implementation="xla_chunked"
    ),
    _inputs(length, heads, depth),
  )


@_peer("attnax_linear", "attnax", "linear")
def _(length: int, heads: int, depth: int) -> Any:
  import attnax

  inputs = _inputs(length, heads, depth, first=True)
  return attnax.linear_attention, inputs


def _ours(name: str, what: str, *like: str) -> Any:
  return peer_cases.case(
    f"jaxattn_{name}", "jaxattn", what, backend="jax", like=like
  )


def _pattern(make: Callable[[Any], Any], *, causal: bool = False) -> Any:
  """A build of `block_sparse` with a pattern of `jaxattn.patterns`."""

  def build(length: int, heads: int, depth: int) -> Any:
    import jaxattn

    pattern, mask = make(jaxattn.patterns), jaxattn.Mask(causal=causal)
    return (
      lambda q, k, v: jaxattn.block_sparse(q, k, v, pattern=pattern, mask=mask),
      _inputs(length, heads, depth),
    )

  return build


def _method(
  make: Callable[[Any, int], Any], *, causal: bool = False, shared: bool = False
) -> Any:
  """A build of a method; with `shared` its queries are its keys."""

  def build(length: int, heads: int, depth: int) -> Any:
    import jax

    import jaxattn

    method = make(jaxattn, length)
    shapes = jaxattn.AttentionShapes(num_heads=heads, head_dim=depth)
    params, state = method.init(jax.random.key(0), shapes)
    mask = jaxattn.Mask(causal=causal)

    def attend(q: Any, k: Any, v: Any) -> Any:
      return method.apply(params, state, q, k, v, mask=mask)[0]

    inputs = _inputs(length, heads, depth)
    if shared:
      return lambda qk, v: attend(qk, qk, v), inputs[1:]
    return attend, inputs

  return build


_ours("dense", "dense", "torch_sdpa", "jax_nn", "tokamax_chunked")(
  _pattern(lambda p: p.Full())
)
_ours("dense_causal", "dense, causal", "torch_sdpa_causal")(
  _pattern(lambda p: p.Causal())
)
_ours(
  "window512",
  "|i - j| <= 256",
  "flex_window512",
  "hf_longformer",
  "jax_nn_window512",
  "tokamax_window512",
)(_pattern(lambda p: p.Window(256, 256)))
_ours("longformer_global", "Longformer, 16 global", "hf_longformer_global")(
  _method(lambda lib, n: lib.longformer(window=512, num_global=16))
)
_ours("bigbird", "BigBird, blocks of 64, 3 random", "hf_bigbird")(
  _method(lambda lib, n: lib.bigbird(block=64, num_random=3))
)
_ours(
  "lsh4",
  "LSH, chunks of 64 and 1 before, 4 rounds",
  "hf_reformer_lsh4",
  "reformer_pytorch_lsh4",
)(_method(lambda lib, n: lib.reformer(rounds=4, after=0), shared=True))
_ours("local64_causal", "chunks of 64, 1 before, causal", "hf_reformer_local")(
  _pattern(lambda p: p.Chunked(64, 1), causal=True)
)
_ours("favor256", "FAVOR+, 256 features", "performer_pytorch")(
  _method(lambda lib, n: lib.performer(num_features=256))
)
_ours(
  "favor256_causal", "FAVOR+, 256 features, causal", "performer_pytorch_causal"
)(_method(lambda lib, n: lib.performer(num_features=256), causal=True))
_ours("linformer", "Linformer, k 256", "linformer")(
  _method(lambda lib, n: lib.linformer(max_length=n, k=256))
)
_ours("sinkhorn", "Sinkhorn, blocks of 64", "sinkhorn_transformer")(
  _method(lambda lib, n: lib.sinkhorn(max_length=n, block=64))
)
_ours(
  "sinkhorn_causal",
  "Sinkhorn, blocks of 64, causal",
  "sinkhorn_transformer_causal",
)(_method(lambda lib, n: lib.sinkhorn(max_length=n, block=64), causal=True))
_ours("routing", "clusters of 256", "routing_transformer")(
  _method(lambda lib, n: lib.routing(num_clusters=n // 256, window=256))
)
_ours(
  "routing_causal", "clusters of 256, causal", "routing_transformer_causal"
)(
  _method(
    lambda lib, n: lib.routing(num_clusters=n // 256, window=256), causal=True
  )
)
_ours("local256", "chunks of 256, 1 on either side", "local_attention")(
  _pattern(lambda p: p.Chunked(256, 1, 1))
)
_ours(
  "local256_causal", "chunks of 256, 1 before, causal", "local_attention_causal"
)(_pattern(lambda p: p.Chunked(256, 1), causal=True))
_ours(
  "linear",
  "linear, elu + 1",
  "fast_transformers",
  "linear_attention_transformer",
  "attnax_linear",
)(_method(lambda lib, n: lib.linear_transformer()))
_ours(
  "linear_causal",
  "linear, elu + 1, causal",
  "fast_transformers_causal",
  "linear_attention_transformer_causal",
)(_method(lambda lib, n: lib.linear_transformer(), causal=True))
