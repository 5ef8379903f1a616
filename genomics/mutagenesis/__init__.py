"""What changes if bases do: pure functions of any model, by jit and vmap.

A model here is `f` from channels `[L, 4]` (A, C, G, T) to an array. A model of
token ids becomes one by `of_channels`.
"""

from collections.abc import Callable
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from genomics import alphabet
from genomics import annotation
from genomics import genome as genome_lib
from genomics import intervals
from genomics import strands
from genomics import tokenizers

Model = Callable[[jax.Array], jax.Array]


def of_channels(f: Callable[[jax.Array], jax.Array]) -> Model:
  """A model of channels from one of nucleotide ids.

  Args:
    f: from `[1, L]` ids to `[1, ...]`.

  Returns:
    From `[L, 4]` to what `f` gives for the row; a place without a 1 is unknown.

  Example:
    >>> f = of_channels(lambda ids: ids)
    >>> f(jnp.eye(4)).tolist()
    [5, 6, 7, 8]

  Source: none.
  """

  def model(x: jax.Array) -> jax.Array:
    known = jnp.max(x, axis=-1) > 0
    ids = jnp.argmax(x, axis=-1) + tokenizers.NUM_SPECIAL
    return f(jnp.where(known, ids, tokenizers.UNK)[None])[0]

  return model


def saturation(f: Model, x: jax.Array, *, batch_size: int = 64) -> jax.Array:
  """The model's output for every single base in every place.

  Args:
    f: the model.
    x: `[L, 4]` channels.
    batch_size: sequences at once.

  Returns:
    `[L, 4, ...]`; where the base is that of `x`, the output for `x` itself.

  Example:
    >>> saturation(lambda x: x.sum(0), jnp.eye(4))[0, 1].tolist()
    [0.0, 2.0, 1.0, 1.0]

  Source: Zhou and Troyanskaya, 2015, https://doi.org/10.1038/nmeth.3547.
  """
  length = x.shape[0]

  def one(index: jax.Array) -> jax.Array:
    base = jax.nn.one_hot(index % 4, 4, dtype=x.dtype)
    return f(x.at[index // 4].set(base))

  found = jax.lax.map(one, jnp.arange(4 * length), batch_size=batch_size)
  return found.reshape(length, 4, *found.shape[1:])


def centred(scores: jax.Array) -> jax.Array:
  """Scores less the mean of the four bases of their place.

  Args:
    scores: `[L, 4, ...]` of `saturation`.

  Returns:
    The same shape.

  Example:
    >>> centred(jnp.array([[0.0, 0.0, 4.0, 0.0]])).tolist()
    [[-1.0, -1.0, 3.0, -1.0]]

  Source: what sequence logos show times the channels.
  """
  return scores - jnp.mean(scores, axis=1, keepdims=True)


def gradient_effects(f: Model, x: jax.Array) -> jax.Array:
  """Every substitution's effect to first order, by one backward pass.

  Args:
    f: a model that is differentiable in channels, with a scalar output.
    x: `[L, 4]` channels.

  Returns:
    `[L, 4]`, about `saturation(f, x) - f(x)`; exact for linear models.

  Example:
    >>> weights = jnp.arange(8.0).reshape(2, 4)
    >>> f = lambda x: jnp.sum(weights * x)
    >>> gradient_effects(f, jnp.eye(4)[:2]).tolist()
    [[0.0, 1.0, 2.0, 3.0], [-1.0, 0.0, 1.0, 2.0]]

  Source: Simonyan et al., 2014, https://arxiv.org/abs/1312.6034.
  """
  slope = jax.grad(f)(x)
  here = jnp.sum(slope * x, axis=-1, keepdims=True)
  return slope - here


def integrated_gradients(
  f: Model, x: jax.Array, baseline: jax.Array | None = None, *, steps: int = 64
) -> jax.Array:
  """What each base adds to the output, between a baseline and a sequence.

  The mean slope on the straight way between both, by the midpoint rule, times
  the way: all of it sums to `f(x) - f(baseline)`, up to the rule's error, which
  falls as one over the square of `steps`.

  Args:
    f: a model that is differentiable in channels, with a scalar output.
    x: `[L, 4]` channels.
    baseline: `[L, 4]`; None: a quarter of each base everywhere. The mean over
      several, such as shuffled sequences, is by `jax.vmap`.
    steps: places on the way.

  Returns:
    `[L, 4]`.

  Example:
    >>> f = lambda x: jnp.sum(x[:, 1] ** 2)
    >>> found = integrated_gradients(f, jnp.eye(4), jnp.zeros((4, 4)))
    >>> round(float(found.sum()), 4) == float(f(jnp.eye(4)))
    True

  Source: Sundararajan et al., 2017, https://arxiv.org/abs/1703.01365.
  """
  start = jnp.full_like(x, 0.25) if baseline is None else baseline
  way = x - start

  def slope(share: jax.Array) -> jax.Array:
    return jax.grad(f)(start + share * way)

  shares = (jnp.arange(steps, dtype=x.dtype) + 0.5) / steps
  total = jax.lax.fori_loop(
    0, steps, lambda i, sums: sums + slope(shares[i]), jnp.zeros_like(x)
  )
  return way * total / steps


def insert(x: jax.Array, motif: jax.Array, place: int) -> jax.Array:
  """Channels with a motif from `place` on.

  Args:
    x: `[..., L, 4]`.
    motif: `[M, 4]`.
    place: of its first base.

  Returns:
    As `x`.

  Example:
    >>> insert(jnp.zeros((3, 4)), jnp.eye(4)[:1], 1)[1, 0].item()
    1.0

  Source: none.
  """
  return x.at[..., place : place + motif.shape[0], :].set(motif)


def marginal_effect(
  f: Model, backgrounds: jax.Array, motif: jax.Array, place: int
) -> jax.Array:
  """What a motif does in sequences that are otherwise of no interest.

  Args:
    f: the model.
    backgrounds: `[n, L, 4]`, for instance by `promoters.dinucleotide_shuffle`.
    motif: `[M, 4]`.
    place: of its first base.

  Returns:
    The mean change of the output.

  Example:
    >>> f = lambda x: x.sum()
    >>> marginal_effect(f, jnp.zeros((2, 3, 4)), jnp.eye(4)[:1], 0).item()
    1.0

  Source: the global importance of Koo et al., 2021,
  https://doi.org/10.1371/journal.pcbi.1008925.
  """
  with_it = jax.vmap(f)(insert(backgrounds, motif, place))
  return jnp.mean(with_it - jax.vmap(f)(backgrounds), axis=0)


def spacing_effects(
  f: Model,
  backgrounds: jax.Array,
  first: jax.Array,
  second: jax.Array,
  place: int,
  gaps: Sequence[int],
) -> jax.Array:
  """What two motifs do at several distances beyond what each does.

  Args:
    f: the model.
    backgrounds: `[n, L, 4]`.
    first: `[M, 4]`.
    second: `[N, 4]`.
    place: of the first one.
    gaps: bases between them.

  Returns:
    One change for each gap: both, less each alone.

  Example:
    >>> f = lambda x: x.sum()
    >>> one = jnp.eye(4)[:1]
    >>> spacing_effects(f, jnp.zeros((1, 9, 4)), one, one, 0, [1, 2]).tolist()
    [0.0, 0.0]

  Source: Avsec et al., 2021 (BPNet), https://doi.org/10.1038/s41588-021-00782-6.
  """
  alone = marginal_effect(f, backgrounds, first, place)
  found = []
  for gap in gaps:
    at = place + first.shape[0] + gap
    other = marginal_effect(f, backgrounds, second, at)
    with_first = insert(backgrounds, first, place)
    both = jax.vmap(f)(insert(with_first, second, at)) - jax.vmap(f)(
      backgrounds
    )
    found.append(jnp.mean(both, axis=0) - alone - other)
  return jnp.stack(found)


def variant_windows(
  genome: genome_lib.Genome, variant: annotation.Variant, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Codes around a variant, as the genome has them and with the other allele.

  Both have `length` bases and agree up to the variant, whose first base stands
  at `length // 2`. What an insertion pushes out at the end is lost; after a
  deletion the genome's next bases follow.

  Args:
    genome: by whose names the variant goes.
    variant: whose `ref` the genome has.
    length: bases.

  Returns:
    `[length]` codes twice: reference, alternative.

  Raises:
    UserError: if the genome has another base there.

  Example:
    >>> genome = genome_lib.InMemory({"c": "AACGTT"})
    >>> change = annotation.Variant("c", 2, "CG", "C")
    >>> [alphabet.decode(x) for x in variant_windows(genome, change, 4)]
    ['AACG', 'AACT']

  Source: Avsec et al., 2021 (Enformer),
  https://doi.org/10.1038/s41592-021-01252-x, for substitutions.
  """
  annotation.check_reference(genome, [variant])
  start = variant.start - length // 2
  end = start + length + len(variant.ref)
  place = intervals.Interval(variant.chrom, start, end)
  codes = genome_lib.read(genome, place).codes
  before, after = length // 2, length // 2 + len(variant.ref)
  other = [codes[:before], alphabet.encode(variant.alt), codes[after:]]
  return codes[:length], np.concatenate(other)[:length]


def variant_effects(
  f: Model,
  reference: jax.Array,
  alternative: jax.Array,
  *,
  both_strands: bool = True,
  batch_size: int = 64,
) -> jax.Array:
  """The model's output with the other allele, less that with the genome's.

  Args:
    f: the model; its output must not depend on places if both strands count.
    reference: `[n, L, 4]`.
    alternative: `[n, L, 4]`.
    both_strands: whether to take the mean over both.
    batch_size: variants at once.

  Returns:
    `[n, ...]`; turns its sign if the alleles change places.

  Example:
    >>> f = lambda x: x[:, 0].sum()
    >>> one, other = jnp.eye(4)[None, :1], jnp.eye(4)[None, 1:2]
    >>> variant_effects(f, one, other, both_strands=False).tolist()
    [-1.0]

  Source: as of `variant_windows`.
  """

  def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    def score(x: jax.Array) -> jax.Array:
      if not both_strands:
        return f(x)
      return (f(x) + f(x[::-1, ::-1])) / 2

    return score(pair[1]) - score(pair[0])

  return jax.lax.map(one, (reference, alternative), batch_size=batch_size)


def masked_log_odds(
  logits: Callable[[jax.Array], jax.Array],
  ids: jax.Array,
  place: int,
  ref: int,
  alt: int,
) -> jax.Array:
  """Log-odds that a masked model gives two bases of a hidden place.

  The mean over both strands.

  Args:
    logits: from `[B, L]` nucleotide ids to `[B, L, V]`.
    ids: `[L]`, of the genome.
    place: that is hidden.
    ref: code of the genome's base.
    alt: code of the other.

  Returns:
    `log p(alt) - log p(ref)`; turns its sign if the alleles change places.

  Example:
    >>> logits = lambda ids: jnp.zeros((*ids.shape, 9)).at[..., 6].set(2.0)
    >>> masked_log_odds(logits, jnp.array([5, 5, 5]), 1, 0, 1).item()
    1.0

  Source: Benegas et al., 2023 (GPN), https://doi.org/10.1073/pnas.2311219120.
  """
  hidden = ids.at[place].set(tokenizers.MASK)
  row = strands.equivariant(logits)(hidden[None])[0, place]
  # The mean of logits: log-odds of two bases are differences of them.
  special = tokenizers.NUM_SPECIAL
  return row[special + alt] - row[special + ref]
