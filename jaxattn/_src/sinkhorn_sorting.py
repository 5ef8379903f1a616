"""Soft permutations of blocks: Sinkhorn balancing and the sorting network."""

import jax
import jax.numpy as jnp

_NEVER = -1e30  # Finite: differences of two of them are numbers.


def sinkhorn_balance(
  logits: jax.Array,
  *,
  iterations: int,
  temperature: float = 1.0,
  causal: bool = False,
  valid: jax.Array | None = None,
) -> jax.Array:
  """Balances a matrix of scores towards a doubly stochastic one.

  `P[i, j]` is the share that place i takes of block j. Each iteration subtracts
  from the logarithms their row log-sum-exp, then their column log-sum-exp, so
  that at the end columns sum to 1 exactly and rows nearly.

  No doubly stochastic matrix but the identity is causal, and a column sum over
  all rows would tell earlier rows of later ones. With `causal`, place i takes
  of earlier blocks only, and a column is divided by its sum over the rows up to
  i: nothing of row i depends on a later one, and row 0 is zero.

  Args:
    logits: `[..., n, n]` floats.
    iterations: k, how often both are normalised; with 0 the exponentials are
      taken as they are.
    temperature: divides the logits; towards 0 the result becomes a permutation.
    causal: see above.
    valid: `[..., n]` bool, which blocks there are; the others have rows and
      columns of zeros.

  Returns:
    `[..., n, n]` float32.

  Raises:
    ValueError: if an option or a shape is out of range.

  Example:
    >>> shares = sinkhorn_balance(jnp.eye(3), iterations=8, temperature=0.1)
    >>> bool((jnp.abs(shares - jnp.eye(3)) < 1e-3).all())
    True

  Source: Mena et al., 2018, https://arxiv.org/abs/1802.08665; Tay et al., 2020,
  https://arxiv.org/abs/2002.11296, section 3.
  """
  if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2]:
    raise ValueError(f"logits must be [..., n, n], got {logits.shape}.")
  if iterations < 0 or temperature <= 0:
    raise ValueError(
      "iterations must not be negative and temperature positive, got "
      f"{iterations} and {temperature}."
    )
  count = logits.shape[-1]
  keep = jnp.ones((count, count), bool)
  if causal:
    keep = jnp.tril(keep, -1)
  keep = jnp.broadcast_to(
    jax.lax.broadcast_to_rank(keep, logits.ndim), logits.shape
  )
  if valid is not None:
    valid = jax.lax.broadcast_to_rank(valid, logits.ndim - 1)
    keep = keep & valid[..., None] & valid[..., None, :]
  x = logits.astype(jnp.float32) / jnp.float32(temperature)
  x = jnp.where(keep, x, _NEVER)
  for _ in range(iterations):
    rows = jax.nn.logsumexp(x, axis=-1, keepdims=True)
    x = jnp.where(keep, x - rows, _NEVER)
    if causal:
      columns = jax.lax.cumlogsumexp(x, axis=x.ndim - 2)
    else:
      columns = jax.nn.logsumexp(x, axis=-2, keepdims=True)
    x = jnp.where(keep, x - columns, _NEVER)
  return jnp.where(keep, jnp.exp(x), 0.0)


def gumbel_noise(rng: jax.Array, logits: jax.Array) -> jax.Array:
  """Logits with Gumbel noise: balanced at a low temperature, a random sort."""
  return logits + jax.random.gumbel(rng, logits.shape, logits.dtype)


def block_sums(
  x: jax.Array, valid: jax.Array | None, *, block: int, causal: bool
) -> jax.Array:
  """What the sorting network knows of every block.

  Args:
    x: `[*B, T, F]`, T a multiple of the block.
    valid: `[*B, T]` bool, or None.
    block: tokens in a block.
    causal: whether a block may know only what precedes its second token.

  Returns:
    `[*B, T / block, F]` float32: the sum of the block's tokens; if causal, of
    all tokens up to its first one.
  """
  x = x.astype(jnp.float32)
  if valid is not None:
    x = jnp.where(valid[..., None], x, 0.0)
  count = x.shape[-2] // block
  blocks = x.reshape(*x.shape[:-2], count, block, x.shape[-1])
  sums = jnp.sum(blocks, axis=-2)
  if not causal:
    return sums
  before = jnp.cumsum(sums, axis=-2) - sums
  return before + blocks[..., 0, :]


def init_network(
  rng: jax.Array, *, nets: int, inputs: int, hidden: int, blocks: int, dtype
) -> dict[str, jax.Array]:
  """Parameters of `nets` sorting networks, `in`, `in_bias`, `out`, `out_bias`.

  Args:
    rng: a PRNG key.
    nets: G.
    inputs: F.
    hidden: width of the hidden layer.
    blocks: most blocks of a row, the number of outputs.
    dtype: of the parameters.
  """
  first, second = jax.random.split(rng)
  draw = jax.nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
  return {
    "in": draw(first, (nets, inputs, hidden), dtype),
    "in_bias": jnp.zeros((nets, hidden), dtype),
    "out": draw(second, (nets, hidden, blocks), dtype),
    "out_bias": jnp.zeros((nets, blocks), dtype),
  }


def sort_logits(
  params: dict[str, jax.Array], embedding: jax.Array
) -> jax.Array:
  """Scores of all blocks for every place, by a network of two layers.

  Args:
    params: of `init_network`.
    embedding: `[*B, n, G, F]` of `block_sums`, n at most the network's blocks.

  Returns:
    `[*B, G, n, n]` float32: how much place i wants block j.
  """
  weights = {k: v.astype(jnp.float32) for k, v in params.items()}
  highest = jax.lax.Precision.HIGHEST
  rank, count = embedding.ndim, embedding.shape[-3]
  wide = jnp.einsum(
    "...ngf,gfw->...ngw", embedding, weights["in"], precision=highest
  )
  wide = jax.nn.relu(wide + jax.lax.broadcast_to_rank(weights["in_bias"], rank))
  out = weights["out"][..., :count]
  logits = jnp.einsum("...ngw,gwm->...ngm", wide, out, precision=highest)
  bias = weights["out_bias"][..., :count]
  logits = logits + jax.lax.broadcast_to_rank(bias, rank)
  return jnp.moveaxis(logits, -2, -3)


def sort_blocks(shares: jax.Array, blocks: jax.Array) -> jax.Array:
  """Blocks in the order of shares.

  Args:
    shares: `[*B, G, m, n]`, G is 1 or K.
    blocks: `[*B, n, b, K, H]`.

  Returns:
    `[*B, m, b, K, H]` float32.
  """
  blocks = blocks.astype(jnp.float32)
  highest = jax.lax.Precision.HIGHEST
  if shares.shape[-3] == 1:
    shares = shares[..., 0, :, :]
    return jnp.einsum(
      "...ij,...jbkh->...ibkh", shares, blocks, precision=highest
    )
  return jnp.einsum(
    "...kij,...jbkh->...ibkh", shares, blocks, precision=highest
  )


def sorted_valid(valid: jax.Array, *, causal: bool) -> jax.Array:
  """Which tokens of sorted blocks there are, `[*B, n, b]`, of `valid` alike.

  One is there if any block that its place may take has a token there, and the
  block of its own place has any.
  """
  seen = jax.lax.cummax(valid.astype(jnp.int32), axis=valid.ndim - 2) > 0
  if causal:
    none = jnp.zeros_like(seen[..., :1, :])
    seen = jnp.concatenate([none, seen[..., :-1, :]], axis=-2)
  else:
    seen = seen[..., -1:, :]
  return seen & jnp.any(valid, axis=-1, keepdims=True)
