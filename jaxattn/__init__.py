"""jaxattn: efficient attention as pure functions, in JAX."""

from jaxattn import feature_maps as feature_maps
from jaxattn import patterns as patterns
from jaxattn import positions as positions
from jaxattn._src.base import AttentionMethod as AttentionMethod
from jaxattn._src.base import AttentionShapes as AttentionShapes
from jaxattn._src.base import take as take
from jaxattn._src.bigbird import BigBird as BigBird
from jaxattn._src.bigbird import bigbird as bigbird
from jaxattn._src.chunked import map_tokens as map_tokens
from jaxattn._src.dense_method import Dense as Dense
from jaxattn._src.dense_method import dense as dense
from jaxattn._src.engines.block_sparse import block_sparse as block_sparse
from jaxattn._src.engines.bucketed import (
  bucketed_attention as bucketed_attention,
)
from jaxattn._src.engines.bucketed import Reach as Reach
from jaxattn._src.engines.dense import dense_attention as dense_attention
from jaxattn._src.engines.dense import (
  dense_linear_attention as dense_linear_attention,
)
from jaxattn._src.engines.gathered import (
  gathered_attention as gathered_attention,
)
from jaxattn._src.engines.linear import linear_attention as linear_attention
from jaxattn._src.engines.linear import linear_extend as linear_extend
from jaxattn._src.engines.linear import linear_state as linear_state
from jaxattn._src.engines.linear_chunks import State as LinearState
from jaxattn._src.etc import Etc as Etc
from jaxattn._src.etc import etc as etc
from jaxattn._src.etc import etc_attention as etc_attention
from jaxattn._src.etc import EtcHeads as EtcHeads
from jaxattn._src.etc import EtcTable as EtcTable
from jaxattn._src.etc_labels import etc_fixed_blocks as etc_fixed_blocks
from jaxattn._src.etc_labels import etc_relative_labels as etc_relative_labels
from jaxattn._src.etc_labels import etc_segment_ids as etc_segment_ids
from jaxattn._src.etc_labels import EtcStructure as EtcStructure
from jaxattn._src.explain import explain as explain
from jaxattn._src.explain import Explanation as Explanation
from jaxattn._src.favor import draw_projection as draw_projection
from jaxattn._src.favor import generalized_features as generalized_features
from jaxattn._src.favor import hyperbolic_features as hyperbolic_features
from jaxattn._src.favor import positive_features as positive_features
from jaxattn._src.favor import trigonometric_features as trigonometric_features
from jaxattn._src.global_tokens import global_attention as global_attention
from jaxattn._src.global_tokens import global_positions as global_positions
from jaxattn._src.linear_transformer import (
  linear_transformer as linear_transformer,
)
from jaxattn._src.linear_transformer import (
  LinearTransformer as LinearTransformer,
)
from jaxattn._src.linformer import Linformer as Linformer
from jaxattn._src.linformer import linformer as linformer
from jaxattn._src.linformer import linformer_attention as linformer_attention
from jaxattn._src.longformer import Longformer as Longformer
from jaxattn._src.longformer import longformer as longformer
from jaxattn._src.lsh import bucket_factors as bucket_factors
from jaxattn._src.lsh import draw_rotations as draw_rotations
from jaxattn._src.lsh import hash_buckets as hash_buckets
from jaxattn._src.lsh import lsh_attention as lsh_attention
from jaxattn._src.masks import CAUSAL as CAUSAL
from jaxattn._src.masks import FULL as FULL
from jaxattn._src.masks import Mask as Mask
from jaxattn._src.masks import packed as packed
from jaxattn._src.merge import merge as merge
from jaxattn._src.merge import Partial as Partial
from jaxattn._src.performer import Performer as Performer
from jaxattn._src.performer import performer as performer
from jaxattn._src.reformer import Reformer as Reformer
from jaxattn._src.reformer import reformer as reformer
from jaxattn._src.relative import Relative as Relative
from jaxattn._src.reversible import reversible_residuals as reversible_residuals
from jaxattn._src.routing import Routing as Routing
from jaxattn._src.routing import routing as routing
from jaxattn._src.routing import routing_attention as routing_attention
from jaxattn._src.sinkhorn import Sinkhorn as Sinkhorn
from jaxattn._src.sinkhorn import sinkhorn as sinkhorn
from jaxattn._src.sinkhorn_sorting import sinkhorn_balance as sinkhorn_balance
from jaxattn._src.sliding_window import sliding_window as sliding_window
from jaxattn._src.sliding_window import SlidingWindow as SlidingWindow
from jaxattn._src.sparse_transformer import interleave as interleave
from jaxattn._src.sparse_transformer import (
  sparse_transformer as sparse_transformer,
)
from jaxattn._src.sparse_transformer import (
  SparseTransformer as SparseTransformer,
)
from jaxattn._src.split_heads import split_heads as split_heads
from jaxattn._src.split_heads import SplitHeads as SplitHeads
from jaxattn._src.star import star_relay_attention as star_relay_attention
from jaxattn._src.star import star_ring_attention as star_ring_attention
from jaxattn._src.synthesizer import Synthesizer as Synthesizer
from jaxattn._src.synthesizer import synthesizer as synthesizer
from jaxattn._src.synthetic_attention import (
  synthetic_attention as synthetic_attention,
)
from jaxattn._src.synthetic_logits import (
  factorized_dense_logits as factorized_dense_logits,
)
from jaxattn._src.token_projections import convolve_tokens as convolve_tokens
from jaxattn._src.token_projections import (
  draw_token_projection as draw_token_projection,
)
from jaxattn._src.token_projections import pool_tokens as pool_tokens
from jaxattn._src.token_projections import project_tokens as project_tokens

__version__ = "0.1.0"

__all__ = [
  "CAUSAL",
  "FULL",
  "AttentionMethod",
  "AttentionShapes",
  "BigBird",
  "Dense",
  "Etc",
  "EtcHeads",
  "EtcStructure",
  "EtcTable",
  "Explanation",
  "LinearState",
  "LinearTransformer",
  "Linformer",
  "Longformer",
  "Mask",
  "Partial",
  "Performer",
  "Reach",
  "Reformer",
  "Relative",
  "Routing",
  "Sinkhorn",
  "SlidingWindow",
  "SparseTransformer",
  "SplitHeads",
  "Synthesizer",
  "bigbird",
  "block_sparse",
  "bucket_factors",
  "bucketed_attention",
  "convolve_tokens",
  "dense",
  "dense_attention",
  "dense_linear_attention",
  "draw_projection",
  "draw_rotations",
  "draw_token_projection",
  "etc",
  "etc_attention",
  "etc_fixed_blocks",
  "etc_relative_labels",
  "etc_segment_ids",
  "explain",
  "factorized_dense_logits",
  "feature_maps",
  "generalized_features",
  "gathered_attention",
  "global_attention",
  "global_positions",
  "hash_buckets",
  "hyperbolic_features",
  "interleave",
  "linear_attention",
  "linear_extend",
  "linear_state",
  "linear_transformer",
  "linformer",
  "linformer_attention",
  "longformer",
  "lsh_attention",
  "map_tokens",
  "merge",
  "packed",
  "patterns",
  "performer",
  "pool_tokens",
  "positions",
  "positive_features",
  "project_tokens",
  "reformer",
  "reversible_residuals",
  "routing",
  "routing_attention",
  "sinkhorn",
  "sinkhorn_balance",
  "sliding_window",
  "sparse_transformer",
  "split_heads",
  "star_relay_attention",
  "star_ring_attention",
  "synthesizer",
  "synthetic_attention",
  "take",
  "trigonometric_features",
]
