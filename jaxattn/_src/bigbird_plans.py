"""Plans of BigBird: which key blocks each query block sees at random.

A plan is an int32 array `[heads, rows, num_random]` of key blocks; -1 is an
empty slot. The first and last block of the input are global: row `i` belongs to
query block `i + 1`, and there are two rows fewer than blocks.
"""

import numpy as np

# Lengths whose plan the authors cut out of the one for their longest input.
_PAPER_LENGTHS = (1024, 2048, 3072, 4096)
_HUGGINGFACE_LENGTHS = (1024, 3072, 4096)
_LAST_TOKEN = 1024  # Where that plan stops drawing.


def uniform_plan(
  num_heads: int,
  num_blocks: int,
  num_random: int,
  *,
  window: int = 3,
  seed: int = 0,
  layer: int = 0,
  ends: bool = True,
) -> np.ndarray:
  """Draws distinct key blocks that no other part of the pattern has.

  Uniform over the blocks outside the window and, if these are global, outside
  the first and the last. The draw depends on the integers given and on nothing
  else, NumPy's version included; a head keeps its blocks when heads are added.

  Args:
    num_heads: heads, each with a draw of its own.
    num_blocks: blocks of the input.
    num_random: key blocks of every query block.
    window: blocks of the window, odd: the query's own and as many on each side.
    seed: of the draw, not negative.
    layer: index of the layer, not negative; each draws its own.
    ends: whether the first and last block are global. They are neither drawn
      nor given rows; otherwise there is a row for each block.

  Returns:
    `[num_heads, num_blocks - 2 or num_blocks, num_random]` int32, ascending in
    every row. Where fewer blocks are left the last slots are -1.

  Raises:
    ValueError: if a number is out of range.

  Example:
    >>> uniform_plan(1, 8, 2).tolist()
    [[[3, 6], [5, 6], [5, 6], [2, 6], [1, 2], [2, 3]]]

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062, section 2.
  Differs: the authors' plans draw from the first blocks only and may repeat a
  block; see `paper_plan`.
  """
  _at_least(1, num_heads=num_heads, num_blocks=num_blocks, window=window)
  _at_least(0, num_random=num_random, seed=seed, layer=layer)
  if window % 2 == 0:
    raise ValueError(f"window must be odd, got {window}.")
  first, end = (1, num_blocks - 1) if ends else (0, num_blocks)
  row = np.arange(first, end)
  gap_start = np.maximum(row - window // 2, first)
  gap = np.minimum(row + window // 2 + 1, end) - gap_start
  room = end - first - gap
  plan = np.full((num_heads, len(row), num_random), -1, np.int32)
  for head in range(num_heads):
    # Raw bits, because NumPy may change what its distributions make of them.
    bits = np.random.PCG64(np.random.SeedSequence((seed, layer, head)))
    rank = _distinct(bits, room, num_random)
    block = first + rank
    block += np.where(block >= gap_start[:, None], gap[:, None], 0)
    plan[head] = np.where(rank < room[:, None], block, -1)
  return plan


def _distinct(
  bits: np.random.BitGenerator, room: np.ndarray, num: int
) -> np.ndarray:
  """`[rows, num]` distinct numbers below `room [rows]`, ascending.

  Rows with less room than `num` end with numbers that are not below it.
  """
  found = np.empty((len(room), 0), np.int64)
  for slot in range(num):
    left = room - slot
    raw = bits.random_raw(len(room)) % np.maximum(left, 1).astype(np.uint64)
    rank = raw.astype(np.int64)
    for taken in found.T:  # Ascending: every number taken shifts the rank by 1.
      rank += rank >= taken
    rank = np.where(left > 0, rank, room + slot)
    found = np.sort(np.concatenate([found, rank[:, None]], axis=1), axis=1)
  return found


def paper_plan(
  num_heads: int,
  length: int,
  *,
  block: int = 64,
  num_random: int = 3,
  layer: int = 0,
  max_length: int = 4096,
) -> np.ndarray:
  """The plan of the authors' code, bit for bit.

  At 1024, 2048, 3072 and 4096 tokens it is cut out of a plan for `max_length`
  tokens whose blocks lie in the first 1024; at other lengths, blocks are drawn
  from the first `2 num_random + 5` or so. Some rows repeat a block, or draw one
  of the window or the last block; each then counts as often as it occurs.

  Args:
    num_heads: heads, each with a draw of its own.
    length: tokens, a multiple of `block`.
    block: tokens in a block.
    num_random: key blocks of every query block.
    layer: index of the layer, which seeds the draw.
    max_length: the length that the authors call the longest.

  Returns:
    `[num_heads, length // block - 2, num_random]` int32. Where fewer blocks
    are left than asked for, the authors' code stops with an error; here these
    slots are -1.

  Raises:
    ValueError: if `length` is not a multiple of `block`, or longer than
      `max_length` where the plan is cut out of that one; or a number is out of
      range.

  Example:
    >>> paper_plan(1, 1024)[0, :3].tolist()
    [[9, 14, 7], [9, 6, 7], [10, 5, 14]]

  Source: Zaheer et al., 2020, https://arxiv.org/abs/2007.14062, and
  https://github.com/google-research/bigbird.
  """
  return _published_plan(
    num_heads, length, block, num_random, layer, max_length, _PAPER_LENGTHS
  )


def huggingface_plan(
  num_heads: int,
  length: int,
  *,
  train: bool,
  block: int = 64,
  num_random: int = 3,
  layer: int = 0,
  max_length: int = 4096,
) -> np.ndarray:
  """The plan of Hugging Face Transformers, bit for bit.

  In training it is the authors' (but at 2048 tokens, which their list lacks);
  in evaluation every slot is block 0, which therefore counts
  `1 + num_random` times. At or below `(5 + 2 num_random) block` tokens the
  models take full attention instead.

  Args:
    num_heads: heads, each with a draw of its own.
    length: tokens, a multiple of `block`.
    train: whether the model is in training mode.
    block: tokens in a block, `block_size` there.
    num_random: key blocks of every query block, `num_random_blocks` there.
    layer: index of the layer, which seeds the draw.
    max_length: `max_position_embeddings` there.

  Returns:
    `[num_heads, length // block - 2, num_random]` int32; -1 where their code
    would stop with an error.

  Raises:
    ValueError: as `paper_plan`.

  Example:
    >>> huggingface_plan(1, 1024, train=False)[0, :2].tolist()
    [[0, 0, 0], [0, 0, 0]]

  Source: models/big_bird of https://github.com/huggingface/transformers, after
  Zaheer et al., 2020, https://arxiv.org/abs/2007.14062.
  """
  if train:
    return _published_plan(
      num_heads,
      length,
      block,
      num_random,
      layer,
      max_length,
      _HUGGINGFACE_LENGTHS,
    )
  num_blocks = _check(num_heads, length, block, num_random, layer)
  return np.zeros((num_heads, max(num_blocks - 2, 0), num_random), np.int32)


def _published_plan(
  num_heads: int,
  length: int,
  block: int,
  num_random: int,
  layer: int,
  max_length: int,
  cut_lengths: tuple[int, ...],
) -> np.ndarray:
  num_blocks = _check(num_heads, length, block, num_random, layer)
  # The legacy generator: its stream is frozen.
  rng = np.random.RandomState(layer)
  if length not in cut_lengths:
    return _staged_plan(rng, num_heads, num_blocks, num_random)
  if length > max_length:
    raise ValueError(f"length {length} is above max_length={max_length}.")
  longest = [
    _longest_plan(rng, max_length // block, block, num_random)
    for _ in range(num_heads)
  ]
  return np.stack(longest)[:, : max(num_blocks - 2, 0)]


def _check(
  num_heads: int, length: int, block: int, num_random: int, layer: int
) -> int:
  """Checks the arguments of a published plan; returns how many blocks."""
  _at_least(1, num_heads=num_heads, length=length, block=block)
  _at_least(0, num_random=num_random, layer=layer)
  if length % block:
    raise ValueError(
      f"length must be a multiple of block={block}, got {length}; round it up."
    )
  return length // block


def _longest_plan(
  rng: np.random.RandomState, num_blocks: int, block: int, num_random: int
) -> np.ndarray:
  """One head's plan for the longest input, drawn from its first tokens."""
  last = num_blocks - 1
  if _LAST_TOKEN > 2 * block:
    last = _LAST_TOKEN // block - 1
  middle = np.arange(1, num_blocks - 1, dtype=np.int32)
  plan = np.full((max(num_blocks - 2, 0), num_random), -1, np.int32)
  for row in range(1, num_blocks - 1):
    choice = np.concatenate((middle[: max(row - 2, 0)], middle[row + 1 : last]))
    if row > 2 and (row >= num_blocks - 3 or row - 2 > last):
      choice = middle[:last]  # The last two rows may draw from their window.
    _fill(plan[row - 1], rng.permutation(choice))
  return plan


def _staged_plan(
  rng: np.random.RandomState, num_heads: int, num_blocks: int, num_random: int
) -> np.ndarray:
  """The plan of any other length, in the order in which the authors draw."""
  early, cut = num_random, num_blocks
  if 2 * num_random + 5 < num_blocks:
    cut = 2 * num_random + 5
  elif num_random + 5 < num_blocks:
    early, cut = num_random // 2, num_random + 5
  late = num_random - early
  # Rows, the key blocks they draw from, and the slots they fill.
  head, tail = (1, cut), (cut, num_blocks)
  near, far = slice(0, early), slice(early, num_random)
  stages = (
    (head, (0, cut), near, early),
    (head, tail, far, late),
    (tail, (0, cut), near, early),
    (tail, tail, far, late),
  )
  plan = np.full((num_heads, num_blocks, num_random), -1, np.int32)
  for rows, (start, end), slots, count in stages:
    if count == 0:
      continue
    for row in range(*rows):
      forbidden = {row - 1, row, row + 1, 0, end - 1}
      if row == 1:
        forbidden.add(end - 2)
      if row == end - 2:
        forbidden.add(1)
      for head_index in range(num_heads):
        order = rng.permutation(np.arange(start, end, dtype=np.int32))
        allowed = [x for x in order if x not in forbidden]
        _fill(plan[head_index, row, slots], np.asarray(allowed, np.int32))
  return plan[:, 1 : max(num_blocks - 1, 1)]


def _fill(slots: np.ndarray, drawn: np.ndarray) -> None:
  """Writes the first blocks drawn; a single one fills all, as by broadcast."""
  drawn = drawn[: len(slots)]
  if len(drawn) == 1:
    slots[:] = drawn
  else:
    slots[: len(drawn)] = drawn


def _at_least(floor: int, **values: int) -> None:
  for name, value in values.items():
    if value < floor:
      raise ValueError(f"{name} must be at least {floor}, got {value}.")
