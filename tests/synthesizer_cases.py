"""The Synthesizer's equations written naively, and what its tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn
from jaxattn._src import dispatch
from jaxattn._src import synthetic_attention as blocks_lib

BATCH, LENGTH, HEADS, KV_HEADS, DEPTH, VALUE, LONGEST = 2, 13, 4, 2, 8, 6, 17
SHAPES = jaxattn.AttentionShapes(
  num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DEPTH, value_dim=VALUE
)
ALL = (
  "random",
  "fixed_random",
  "factorized_random",
  "dense",
  "factorized_dense",
  "dot_product",
)


def make(*parts, **options):
  return jaxattn.synthesizer(max_length=LONGEST, parts=parts, **options)


def variables(method, seed=1):
  """Parameters that are all far from zero, and state."""
  params, state = method.init(jax.random.key(seed), SHAPES)
  leaves, tree = jax.tree.flatten(params)
  rngs = jax.random.split(jax.random.key(seed + 1), len(leaves) + 1)
  drawn = [
    jax.random.normal(r, x.shape) for r, x in zip(rngs, leaves, strict=False)
  ]
  return jax.tree.unflatten(tree, drawn), state


def draw(seed, q_len=LENGTH, k_len=LENGTH, batch=BATCH):
  rngs = jax.random.split(jax.random.key(seed), 3)
  sizes = ((q_len, HEADS, DEPTH), (k_len, KV_HEADS, DEPTH))
  return tuple(
    jax.random.normal(rng, (batch, *shape))
    for rng, shape in zip(rngs, (*sizes, (k_len, KV_HEADS, VALUE)), strict=True)
  )


def full_mask(q_len=LENGTH, k_len=LENGTH):
  """Every field set, with permuted positions and a row that sees nothing."""
  rng = np.random.default_rng(0)
  rows, cols = (BATCH, q_len), (BATCH, k_len)
  key_valid = rng.random(cols) < 0.8
  key_valid[1, np.sort(rng.integers(0, 2, k_len)) == 1] = False
  fields = dict(
    key_valid=key_valid,
    query_valid=rng.random(rows) < 0.8,
    query_segment_ids=np.sort(rng.integers(0, 2, rows)),
    key_segment_ids=np.sort(rng.integers(0, 2, cols)),
    query_positions=np.stack([rng.permutation(q_len) for _ in range(BATCH)]),
    key_positions=np.stack([rng.permutation(k_len) for _ in range(BATCH)]),
  )
  fields = {name: jnp.asarray(x) for name, x in fields.items()}
  return jaxattn.Mask(causal=True, **fields)


def naive_logits(method, params, state, query, key):
  """The equations of all parts, a list of `[B, N, T, S]`."""
  t, s = query.shape[1], key.shape[1]
  einsum = functools.partial(jnp.einsum, precision="highest")
  held, found = {**params, **(state or {})}, {}

  def tokens(x):  # [..., N, T, S] for all rows of the batch.
    return jnp.broadcast_to(x, (query.shape[0], *x.shape))

  def layer(p, name):
    hidden = jnp.maximum(query + p["hidden_bias"][None, None], 0)
    kernel, bias = p[name + "kernel"], p[name + "bias"]
    if kernel.ndim == 2:
      kernel, bias = jnp.stack([kernel] * HEADS), jnp.stack([bias] * HEADS)
    return einsum("btnh,nsh->bnts", hidden, kernel) + bias[None, :, None]

  for name in ("random", "fixed_random"):
    if name in held:
      found[name] = tokens(held[name]["table"][:, :t, :s])
  if "factorized_random" in held:
    p = held["factorized_random"]
    whole = einsum("ntk,nsk->nts", p["rows"], p["columns"])
    found["factorized_random"] = tokens(whole[:, :t, :s])
  if "dense" in held:
    found["dense"] = layer(held["dense"], "")[..., :s]
  if "factorized_dense" in held:
    p = held["factorized_dense"]
    inner, outer = layer(p, "inner_"), layer(p, "outer_")
    found["factorized_dense"] = jnp.stack(
      [
        inner[..., j % inner.shape[-1]] * outer[..., j // inner.shape[-1]]
        for j in range(s)
      ],
      axis=-1,
    )
  keys = jnp.repeat(key, HEADS // KV_HEADS, axis=2)
  scores = einsum("btnh,bsnh->bnts", query, keys)
  found["dot_product"] = scores * jnp.float32(DEPTH**-0.5)
  return [found[name] for name in method.parts]


def naive(method, params, state, qkv, mask):
  query, key, value = qkv
  logits = naive_logits(method, params, state, query, key)
  weights = [1.0] * len(logits)
  if "mixing" in params:
    weights = jnp.exp(params["mixing"]) / jnp.sum(jnp.exp(params["mixing"]))
  logits = sum(w * x for w, x in zip(weights, logits, strict=True))
  allowed = mask.dense(query.shape[1], key.shape[1])
  if allowed.ndim == 3:
    allowed = allowed[None]
  allowed = jnp.broadcast_to(allowed, logits.shape)
  maps = jax.nn.softmax(jnp.where(allowed, logits, -1e30), axis=-1)
  maps = jnp.where(jnp.any(allowed, axis=-1, keepdims=True), maps, 0.0)
  values = jnp.repeat(value, HEADS // KV_HEADS, axis=2)
  return jnp.einsum("bnts,bsnv->btnv", maps, values, precision="highest")


@functools.partial(jax.jit, static_argnames=("method",))
def pull(method, params, state, qkv, mask, ct):
  out, vjp = jax.vjp(
    lambda params, qkv: method.apply(params, state, *qkv, mask=mask)[0],
    params,
    qkv,
  )
  return out, vjp(ct)


def cotangent(q_len=LENGTH):
  return jax.random.normal(jax.random.key(9), (BATCH, q_len, HEADS, VALUE))


@functools.partial(jax.jit, static_argnames=("method",))
def pull_naive(method, params, state, qkv, mask, ct):
  out, vjp = jax.vjp(
    lambda params, qkv: naive(method, params, state, qkv, mask), params, qkv
  )
  return out, vjp(ct)


def attention_map(method, params, state, query, key, mask=jaxattn.FULL):
  """`[B, N, T, S]`: what a value of unit vectors gives."""
  s = key.shape[1]
  value = jnp.broadcast_to(
    jnp.eye(s)[:, None], (query.shape[0], s, KV_HEADS, s)
  )
  out, _ = method.apply(params, state, query, key, value, mask=mask)
  return jnp.swapaxes(out, 1, 2)


EQUATIONS = {
  **{name: make(name) for name in ALL},
  "dense_shared": make("dense", share_heads=True),
  "factorized_dense_6_3": make("factorized_dense", factors=(6, 3)),
  "factorized_dense_shared": make("factorized_dense", share_heads=True),
  "all": make(*ALL, rank=3),
  "sum": make("dot_product", "random", "dense", mixing="sum"),
}


def cut_small(monkeypatch):
  """Five rows in a block, so that 13 rows are three blocks and padding."""
  monkeypatch.setattr(blocks_lib, "_MIN_ROWS", 5)
  monkeypatch.setattr(dispatch, "score_budget", lambda: 1)
  pull.clear_cache()
