"""Attention cores of other packages, and ours on the same work, by name.

A case makes a function and its inputs for a length, a number of heads and their
size. Layers that bring projections have them replaced by copies, so that only
attention is compared. What a case of ours is compared with is its `like`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

Build = Callable[[int, int, int], tuple[Callable[..., Any], list[Any]]]


@dataclasses.dataclass(frozen=True)
class Case:
  """One attention core.

  Attributes:
    package: whose it is, as the package index names it.
    what: what it computes.
    build: of length, heads and their size: a function and its inputs.
    backend: "torch" or "jax".
    trains: whether it has a backward pass here.
    longest: above which length it is not run.
    like: the names of the peers that do the same work, of a case of ours.
  """

  package: str
  what: str
  build: Build
  backend: str = "torch"
  trains: bool = True
  longest: int = 1 << 30
  like: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(name: str, package: str, what: str, **options: Any) -> Any:
  """Registers what it decorates as the `build` of a case."""

  def add(build: Build) -> Build:
    CASES[name] = Case(package, what, build, **options)
    return build

  return add


def _torch_inputs(shape: tuple[int, ...], count: int = 3) -> list[Any]:
  import torch

  torch.manual_seed(0)
  return [torch.randn(shape) for _ in range(count)]


def _heads_first(length: int, heads: int, depth: int) -> list[Any]:
  return _torch_inputs((1, heads, length, depth))


def _merged(length: int, heads: int, depth: int) -> list[Any]:
  return _torch_inputs((1, length, heads * depth), 1)


def _copy() -> Any:
  """A module in the place of a projection."""
  import torch

  class Copy(torch.nn.Module):
    def forward(self, x: Any) -> Any:
      return x.clone()

  return Copy()


def _replace(layer: Any, *names: str) -> Any:
  for name in names:
    if hasattr(layer, name):
      setattr(layer, name, _copy())
  return layer


@case("torch_sdpa", "torch", "dense")
def _(length: int, heads: int, depth: int) -> Any:
  from torch.nn import functional

  attend = functional.scaled_dot_product_attention
  return attend, _heads_first(length, heads, depth)


@case("torch_sdpa_causal", "torch", "dense, causal")
def _(length: int, heads: int, depth: int) -> Any:
  from torch.nn import functional

  return (
    lambda q, k, v: functional.scaled_dot_product_attention(
      q, k, v, is_causal=True
    ),
    _heads_first(length, heads, depth),
  )


@case("flex_window512", "torch", "FlexAttention, |i - j| <= 256", trains=False)
def _(length: int, heads: int, depth: int) -> Any:
  import torch
  from torch.nn.attention import flex_attention

  mask = flex_attention.create_block_mask(
    lambda b, h, i, j: (i - j).abs() <= 256,
    None,
    None,
    length,
    length,
    device="cpu",
    BLOCK_SIZE=128,
  )
  attend = torch.compile(flex_attention.flex_attention)
  return (
    lambda q, k, v: attend(q, k, v, block_mask=mask),
    _heads_first(length, heads, depth),
  )


def _longformer(length: int, heads: int, depth: int, num_global: int) -> Any:
  import torch
  from transformers.models.longformer import modeling_longformer as module

  config = module.LongformerConfig(
    hidden_size=heads * depth,
    num_attention_heads=heads,
    attention_window=[512],
    attention_probs_dropout_prob=0.0,
  )
  layer = module.LongformerSelfAttention(config, layer_id=0).eval()
  for side in ("query", "key", "value"):
    _replace(layer, side, f"{side}_global")
  mask = torch.zeros(1, length)
  mask[:, :num_global] = 10000.0
  options = {
    "attention_mask": mask,
    "is_index_masked": mask < 0,
    "is_index_global_attn": mask > 0,
    "is_global_attn": num_global > 0,
  }
  return lambda x: layer(x, **options)[0], _merged(length, heads, depth)


@case("hf_longformer", "transformers", "Longformer, window 512")
def _(length: int, heads: int, depth: int) -> Any:
  return _longformer(length, heads, depth, 0)


@case("hf_longformer_global", "transformers", "Longformer, 16 global tokens")
def _(length: int, heads: int, depth: int) -> Any:
  return _longformer(length, heads, depth, 16)


@case("hf_bigbird", "transformers", "BigBird, blocks of 64, 3 random")
def _(length: int, heads: int, depth: int) -> Any:
  import torch
  from transformers.models.big_bird import modeling_big_bird as module

  config = module.BigBirdConfig(
    hidden_size=heads * depth,
    num_attention_heads=heads,
    block_size=64,
    num_random_blocks=3,
    max_position_embeddings=max(length, 4096),
  )
  # In evaluation it would send every random block to the first one.
  layer = module.BigBirdBlockSparseAttention(config, seed=0).train()
  make = module.BigBirdModel.create_masks_for_block_sparse_attn
  blocked, band, rows, columns = make(torch.ones(1, length), 64)
  sizes = (heads, 3, depth, 64, 64, 1, length, length)
  plan = {"seed": 0, "plan_from_length": None, "plan_num_rand_blocks": None}

  def attend(q: Any, k: Any, v: Any) -> Any:
    return layer.bigbird_block_sparse_attention(
      q, k, v, band, rows, columns, blocked, blocked, *sizes, **plan
    )[0]

  return attend, _heads_first(length, heads, depth)


def _hf_reformer(length: int, heads: int, depth: int, kind: str) -> Any:
  from transformers.models.reformer import modeling_reformer as module

  bits = (2 * length // 64).bit_length() - 1
  config = module.ReformerConfig(
    hidden_size=heads * depth,
    attention_head_size=depth,
    num_attention_heads=heads,
    attn_layers=[kind],
    is_decoder=kind == "local",
    hash_seed=0,
    num_hashes=4,
    num_buckets=[2 ** (bits // 2), 2 ** (bits - bits // 2)],
    local_attn_chunk_length=64,
    lsh_attn_chunk_length=64,
    lsh_attention_probs_dropout_prob=0.0,
    local_attention_probs_dropout_prob=0.0,
  )
  make = module.LSHSelfAttention if kind == "lsh" else module.LocalSelfAttention
  layer = _replace(make(config).eval(), "query_key", "query", "key", "value")
  return lambda x: layer(x).hidden_states, _merged(length, heads, depth)


@case("hf_reformer_lsh4", "transformers", "LSH, chunks of 64, 4 rounds")
def _(length: int, heads: int, depth: int) -> Any:
  return _hf_reformer(length, heads, depth, "lsh")


@case("hf_reformer_local", "transformers", "chunks of 64 and 1 before, causal")
def _(length: int, heads: int, depth: int) -> Any:
  return _hf_reformer(length, heads, depth, "local")


@case("reformer_pytorch_lsh4", "reformer-pytorch", "LSH, 4 rounds")
def _(length: int, heads: int, depth: int) -> Any:
  from reformer_pytorch import LSHAttention

  layer = LSHAttention(bucket_size=64, n_hashes=4).eval()
  inputs = _torch_inputs((heads, length, depth), 2)
  return lambda qk, v: layer(qk, v)[0], inputs


def _performer(length: int, heads: int, depth: int, causal: bool) -> Any:
  from performer_pytorch import FastAttention

  layer = FastAttention(dim_heads=depth, nb_features=256, causal=causal)
  return layer.eval(), _heads_first(length, heads, depth)


@case("performer_pytorch", "performer-pytorch", "FAVOR+, 256 features")
def _(length: int, heads: int, depth: int) -> Any:
  return _performer(length, heads, depth, False)


@case(
  "performer_pytorch_causal",
  "performer-pytorch",
  "FAVOR+, 256 features, causal",
  longest=4096,
)
def _(length: int, heads: int, depth: int) -> Any:
  return _performer(length, heads, depth, True)


@case("linformer", "linformer", "Linformer, k 256")
def _(length: int, heads: int, depth: int) -> Any:
  from linformer import LinformerSelfAttention

  layer = LinformerSelfAttention(
    dim=heads * depth, seq_len=length, k=256, heads=heads
  )
  layer = _replace(layer.eval(), "to_q", "to_k", "to_v", "to_out")
  return layer, _merged(length, heads, depth)


@case("sinkhorn_transformer", "sinkhorn-transformer", "Sinkhorn, blocks of 64")
def _(length: int, heads: int, depth: int) -> Any:
  from sinkhorn_transformer import sinkhorn_transformer as module

  layer = module.SinkhornAttention(64, heads * depth, depth, heads, length)
  return layer.eval(), _heads_first(length, heads, depth)


@case(
  "sinkhorn_transformer_causal",
  "sinkhorn-transformer",
  "Sinkhorn, blocks of 64, causal",
)
def _(length: int, heads: int, depth: int) -> Any:
  from sinkhorn_transformer import sinkhorn_transformer as module

  make = module.SinkhornCausalAttention
  layer = make(64, heads * depth, depth, heads, length)
  return layer.eval(), _heads_first(length, heads, depth)


def _routing(length: int, heads: int, depth: int, causal: bool) -> Any:
  from routing_transformer import KmeansAttention

  layer = KmeansAttention(
    num_clusters=max(1, length // 256),
    window_size=256,
    num_heads=heads,
    head_dim=depth,
    causal=causal,
  ).eval()
  return (
    lambda q, k, v: layer(q, k, v)[0],
    _heads_first(length, heads, depth),
  )


@case("routing_transformer", "routing-transformer", "clusters of 256")
def _(length: int, heads: int, depth: int) -> Any:
  return _routing(length, heads, depth, False)


@case(
  "routing_transformer_causal", "routing-transformer", "clusters of 256, causal"
)
def _(length: int, heads: int, depth: int) -> Any:
  return _routing(length, heads, depth, True)


def _local(length: int, heads: int, depth: int, causal: bool) -> Any:
  from local_attention import LocalAttention

  layer = LocalAttention(
    window_size=256, causal=causal, use_rotary_pos_emb=False
  )
  return layer, _heads_first(length, heads, depth)


@case("local_attention", "local-attention", "chunks of 256, 1 on either side")
def _(length: int, heads: int, depth: int) -> Any:
  return _local(length, heads, depth, False)


@case(
  "local_attention_causal", "local-attention", "chunks of 256, 1 before, causal"
)
def _(length: int, heads: int, depth: int) -> Any:
  return _local(length, heads, depth, True)


@case("linear_attention_transformer", "linear-attention-transformer", "linear")
def _(length: int, heads: int, depth: int) -> Any:
  from linear_attention_transformer import linear_attention_transformer as lib

  return lib.linear_attn, _heads_first(length, heads, depth)


@case(
  "linear_attention_transformer_causal",
  "linear-attention-transformer",
  "linear, causal by chunks of 64",
)
def _(length: int, heads: int, depth: int) -> Any:
  from linear_attention_transformer import linear_attention_transformer as lib

  return (
    lambda q, k, v: lib.causal_linear_attn(q, k, v, bucket_size=64),
    _heads_first(length, heads, depth),
  )


@case("fast_transformers", "pytorch-fast-transformers", "linear, elu + 1")
def _(length: int, heads: int, depth: int) -> Any:
  import torch
  from fast_transformers import attention
  from fast_transformers import masking

  layer, full = (
    attention.LinearAttention(depth).eval(),
    masking.FullMask(length),
  )
  lengths = masking.LengthMask(torch.tensor([length]))
  return (
    lambda q, k, v: layer(q, k, v, full, lengths, lengths),
    _torch_inputs((1, length, heads, depth)),
  )


@case(
  "fast_transformers_causal",
  "pytorch-fast-transformers",
  "linear, elu + 1, causal (C++)",
)
def _(length: int, heads: int, depth: int) -> Any:
  import torch
  from fast_transformers import attention
  from fast_transformers import masking

  layer = attention.CausalLinearAttention(depth).eval()
  causal = masking.TriangularCausalMask(length)
  lengths = masking.LengthMask(torch.tensor([length]))
  return (
    lambda q, k, v: layer(q, k, v, causal, lengths, lengths),
    _torch_inputs((1, length, heads, depth)),
  )
