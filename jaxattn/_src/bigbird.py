"""BigBird attention: window, global and random blocks."""

import dataclasses
import functools
from typing import Any
from typing import get_args
from typing import Literal

import numpy as np

from jaxattn._src import base
from jaxattn._src import bigbird_plans
from jaxattn._src import block_patterns
from jaxattn._src import pattern_base
from jaxattn._src import pattern_method
from jaxattn._src import patterns

Form = Literal["itc", "etc"]
PlanName = Literal["uniform", "paper", "huggingface", "huggingface_train"]
_NUM_RANDOM = 3  # Random blocks of every released model.


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigBird(pattern_method.PatternMethod):
  """Softmax attention over a window of blocks, global and random ones.

  The input is cut in blocks of `block` tokens; the last may be shorter. A query
  block sees

  - the blocks at most `window_blocks // 2` away from it,
  - the global tokens, which see everything in turn: the first and last block
    (`itc`), or the first `num_global` tokens, which are in no block (`etc`),
  - `num_random` blocks that a static plan names, different on every head.

  That is `O(T (5 + num_random) block)` edges. Inputs of up to four blocks get
  full attention. The last block is that of the array, padded or not.

  Attributes:
    block: tokens in a block.
    num_random: random blocks of every query block; None is 3, or what an
      explicit plan has.
    window_blocks: blocks of the window, odd.
    form: `itc` makes existing blocks global, `etc` takes extra tokens.
    num_global: global tokens at the start (`etc` only, where it must be given).
    plan: `uniform`, `paper`, `huggingface`, `huggingface_train`, or integers
      `[num_heads or 1, rows, num_random]`.
    seed: of the uniform plan.
    layer: index of the layer, which a named plan depends on.
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Example:
    >>> method = bigbird(block=4, num_random=1)
    >>> x = jnp.ones((1, 30, 2, 8))
    >>> method.apply((), (), x, x, x)[0].shape
    (1, 30, 2, 8)

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062.
  """

  block: int = 64
  num_random: int | None = None
  window_blocks: int = 3
  form: Form = "itc"
  num_global: int | None = None
  plan: Any = "uniform"
  seed: int = 0
  layer: int = 0

  honours = frozenset(
    {"key_valid", "query_valid", "query_segment_ids", "key_segment_ids"}
  )
  causality = base.NONE
  time_exponent = 1.0
  memory_exponent = 1.0

  def __post_init__(self) -> None:
    pattern_base.positive("block", self.block)
    if self.window_blocks < 1 or self.window_blocks % 2 == 0:
      raise ValueError(
        "window_blocks must be odd, the query's own block and as many on each "
        f"side, got {self.window_blocks}."
      )
    for name, value in (("seed", self.seed), ("layer", self.layer)):
      if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}.")
    self._check_form()
    if isinstance(self.plan, str):
      self._check_named_plan()
    else:
      self._take_plan()

  def _check_form(self) -> None:
    if self.form not in get_args(Form):
      raise ValueError(
        f"form must be one of {get_args(Form)}, got {self.form!r}."
      )
    if self.form == "itc" and self.num_global is not None:
      raise ValueError(
        "num_global is of form='etc': with 'itc' the first and last block are "
        f"global. Got num_global={self.num_global}."
      )
    if self.form == "etc" and (self.num_global is None or self.num_global < 0):
      raise ValueError(
        "form='etc' needs num_global, how many tokens at the start are global; "
        f"got {self.num_global}."
      )

  def _check_named_plan(self) -> None:
    if self.plan not in get_args(PlanName):
      raise ValueError(
        f"plan must be one of {get_args(PlanName)} or an integer array "
        f"[num_heads or 1, rows, num_random], got {self.plan!r}."
      )
    num_random = _NUM_RANDOM if self.num_random is None else self.num_random
    if num_random < 0:
      raise ValueError(f"num_random must not be negative, got {num_random}.")
    object.__setattr__(self, "num_random", num_random)
    if self.plan == "uniform":
      return
    for name, wanted in (
      ("form", "itc"),
      ("window_blocks", 3),
      ("seed", 0),
    ):
      found = getattr(self, name)
      if found != wanted:
        raise ValueError(
          f"plan={self.plan!r} was published for {name}={wanted!r}, got "
          f"{found!r}; take plan='uniform'."
        )

  def _take_plan(self) -> None:
    plan = np.asarray(self.plan)
    if plan.ndim != 3 or not np.issubdtype(plan.dtype, np.integer):
      raise ValueError(
        "plan must be integers [num_heads or 1, rows, num_random], got "
        f"{plan.dtype}{plan.shape}."
      )
    if self.num_random not in (None, plan.shape[2]):
      raise ValueError(
        f"num_random={self.num_random}, but the plan has {plan.shape[2]}; "
        "leave it out."
      )
    if self.seed or self.layer:
      raise ValueError(
        f"seed and layer are of named plans, got seed={self.seed}, "
        f"layer={self.layer}."
      )
    object.__setattr__(self, "num_random", plan.shape[2])
    rows = tuple(tuple(map(tuple, head)) for head in plan.tolist())
    object.__setattr__(self, "plan", rows)

  def pattern(
    self, num_heads: int, q_len: int, k_len: int, *, causal: bool = False
  ) -> patterns.Pattern | tuple[patterns.Pattern, ...]:
    """The edges of every head; one pattern where all heads have the same."""
    del causal
    if q_len != k_len:
      raise ValueError(
        "bigbird is self-attention, whose last block is global: query and key "
        f"must have one length, got T={q_len} and S={k_len}."
      )
    return _patterns(self, num_heads, q_len)

  def table(self, num_heads: int, num_blocks: int) -> np.ndarray:
    """The plan for an input of `num_blocks` blocks.

    Args:
      num_heads: N.
      num_blocks: blocks, the last perhaps a shorter one; with `etc` these are
        of the tokens that are not global.

    Returns:
      `[N or 1, num_blocks - 2, num_random]` int32 (`etc`: `num_blocks` rows);
      -1 is an empty slot.

    Raises:
      ValueError: if an explicit plan does not fit the heads or the blocks.
    """
    if not isinstance(self.plan, str):
      return self._explicit(num_heads, num_blocks)
    num_random = self.num_random or 0
    if self.plan == "uniform":
      return bigbird_plans.uniform_plan(
        num_heads,
        num_blocks,
        num_random,
        window=self.window_blocks,
        seed=self.seed,
        layer=self.layer,
        ends=self.form == "itc",
      )
    length = num_blocks * self.block
    options = dict(block=self.block, num_random=num_random, layer=self.layer)
    if self.plan == "paper":
      return bigbird_plans.paper_plan(num_heads, length, **options)
    train = self.plan == "huggingface_train"
    return bigbird_plans.huggingface_plan(
      num_heads, length, train=train, **options
    )

  def _explicit(self, num_heads: int, num_blocks: int) -> np.ndarray:
    heads, rows = len(self.plan), len(self.plan[0]) if self.plan else 0
    wanted = num_blocks if self.form == "etc" else max(num_blocks - 2, 0)
    shape = (heads, rows, self.num_random or 0)
    plan = np.asarray(self.plan, np.int32).reshape(shape)
    if heads not in (1, num_heads) or rows != wanted:
      raise ValueError(
        f"plan must be [{num_heads} or 1, {wanted}, num_random] for "
        f"{num_heads} heads and {num_blocks} blocks of {self.block} tokens, "
        f"got {plan.shape}."
      )
    if plan.size and (plan.min() < -1 or plan.max() >= num_blocks):
      raise ValueError(
        f"plan must name blocks in [0, {num_blocks}), or -1 for none; got "
        f"{plan.min()} to {plan.max()}."
      )
    return plan


@functools.lru_cache(maxsize=64)
def _patterns(
  method: BigBird, num_heads: int, length: int
) -> patterns.Pattern | tuple[patterns.Pattern, ...]:
  """The edges of every head at a length."""
  num_global = method.num_global or 0
  num_blocks = -(-(length - num_global) // method.block)
  if num_blocks <= 0:
    return patterns.Full()
  reach = (5 + 2 * (method.num_random or 0)) * method.block
  if method.plan in ("huggingface", "huggingface_train") and length <= reach:
    return patterns.Full()  # As their models do.
  side, ends = method.window_blocks // 2, method.form == "itc"
  table = method.table(num_heads, num_blocks)
  own: patterns.Pattern = patterns.Chunked(method.block, side, side)
  if ends:
    own = own | EndBlocks(method.block, num_blocks)
    empty = ((0, 0), (1, 1), (0, 0))  # Rows that see everything.
    table = np.pad(table, empty, constant_values=-1)[:, :num_blocks]

  def moved(pattern: patterns.Pattern) -> patterns.Pattern:
    return block_patterns.Moved(pattern, num_global) if num_global else pattern

  heads = []
  for plan in table:
    once, *more = _levels(plan, side, ends)
    drawn = bool(np.any(once >= 0))
    found = moved(own | _blocks(once, method.block) if drawn else own)
    if num_global:
      found = patterns.Global(num_global) | found
    for again in more:
      found = found + moved(_blocks(again, method.block))
    heads.append(found)
  return heads[0] if len(set(heads)) == 1 else tuple(heads)


def _blocks(plan: np.ndarray, block: int) -> patterns.Pattern:
  return block_patterns.RandomBlocks(plan.shape[1], block, plan=plan)


def _levels(plan: np.ndarray, side: int, ends: bool) -> list[np.ndarray]:
  """Splits a head's plan `[rows, num]` by how often an edge was there before.

  Returns:
    Plans of one shape, -1 where a slot belongs to another: the first holds the
    blocks that neither the window nor the global blocks nor an earlier slot
    has, the next those that one of these has, then those that two have.
  """
  rows, num = plan.shape
  row = np.arange(rows)[:, None]
  before = (abs(plan - row) <= side).astype(int)
  if ends:
    before |= (plan == 0) | (plan == rows - 1)
  for slot in range(num):
    before[:, slot] += (plan[:, :slot] == plan[:, slot : slot + 1]).sum(1)
  real = plan >= 0
  depth = int(before.max(where=real, initial=0))
  return [
    np.where(real & (before == level), plan, -1) for level in range(depth + 1)
  ]


@dataclasses.dataclass(frozen=True)
class EndBlocks(patterns.Pattern):
  """The first and the last block see everything, everything sees them.

  Attributes:
    block: tokens in a block.
    num: blocks of the input, the last perhaps a shorter one.

  Example:
    >>> EndBlocks(2, 3).mask(2, np.arange(6)).astype(int).tolist()
    [1, 1, 0, 0, 1, 1]

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062, appendix D.
  """

  block: int
  num: int

  def _inside(self, x: Any) -> Any:
    return (x < self.block) | (x >= (self.num - 1) * self.block)

  def mask(self, i: Any, j: Any) -> Any:
    return self._inside(i) & (j == j) | self._inside(j) & (i == i)

  def classes(self, rows: patterns.Tiles, cols: patterns.Tiles) -> np.ndarray:
    row, col = (
      pattern_base.all_any(inside.all(1), inside.any(1))
      for inside in (self._inside(rows.index), self._inside(cols.index))
    )
    return np.maximum(row[:, None], col[None, :])


def bigbird(
  *,
  block: int = 64,
  num_random: int | None = None,
  window_blocks: int = 3,
  form: Form = "itc",
  num_global: int | None = None,
  plan: Any = "uniform",
  seed: int = 0,
  layer: int = 0,
  relative: Any = None,
  implementation: base.Implementation = None,
) -> BigBird:
  """Returns BigBird's attention as a method, for encoders.

  A model whose layers differ in their random blocks, as the authors' do, takes
  a tuple of methods with `layer=0`, `layer=1`, and so on.

  Args:
    block: tokens in a block.
    num_random: random blocks of every query block and head; None is 3, or what
      an explicit plan has.
    window_blocks: blocks of the window, odd.
    form: `itc`: the first and last block are global. `etc`: the first
      `num_global` tokens are, which stand before the input proper.
    num_global: global tokens, for `etc` only.
    plan: where the random blocks come from. `uniform`: drawn evenly over the
      blocks that nothing else covers, so that no edge counts twice. `paper`:
      the authors' table, bit for bit. `huggingface`: what Hugging Face's models
      have in evaluation, and `huggingface_train` in training; at or below
      `(5 + 2 num_random) block` tokens both are full attention. Or integers
      `[num_heads or 1, rows, num_random]` for inputs of `rows + 2` blocks
      (`etc`: `rows`), -1 for an empty slot. An edge counts as often as the plan
      and the other parts have it. `BigBird.table` gives the plan as an array.
    seed: of the uniform plan.
    layer: index of the layer; layers draw different blocks.
    relative: a relative-position scheme of `jaxattn.positions`, or None.
    implementation: as of `block_sparse`.

  Returns:
    A `BigBird` method; it serves no causal mask, and needs T == S.

  Raises:
    ValueError: if an option is out of range, or is not one of the form or plan
      that it comes with.

  Example:
    >>> bigbird(form="etc", num_global=2, num_random=1).num_global
    2

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062. Differs: by
  default blocks are drawn over the whole input and no edge counts twice.
  """
  return BigBird(
    block=block,
    num_random=num_random,
    window_blocks=window_blocks,
    form=form,
    num_global=num_global,
    plan=plan,
    seed=seed,
    layer=layer,
    relative=relative,
    implementation=implementation,
  )
