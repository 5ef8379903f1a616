"""Hypothesis strategies for patterns and small lengths."""

from hypothesis import strategies as st

from jaxattn import patterns

# One token, around a tile of 8 and of 16, and primes.
LENGTHS = (1, 7, 8, 9, 17, 31)

_small = st.integers(0, 8)
_size = st.integers(1, 8)

_atoms = st.one_of(
  st.just(patterns.Full()),
  st.just(patterns.Causal()),
  st.builds(patterns.Window, _small, _small),
  st.builds(patterns.Window, st.none(), st.integers(-3, 4)),
  st.builds(patterns.Strided, st.integers(2, 6)),
  st.builds(patterns.dilated, _small, _small, dilation=st.integers(2, 4)),
  st.builds(patterns.Chunked, _size, st.integers(0, 1), st.integers(0, 1)),
  st.builds(patterns.fixed, st.just(4), st.integers(1, 3)),
  st.builds(patterns.Summary, st.just(5), st.integers(1, 3), st.integers(0, 2)),
  st.builds(patterns.Global, _size, st.booleans(), st.booleans()),
  st.builds(patterns.RandomBlocks, st.integers(1, 2), _size, _size),
)


def patterns_strategy() -> st.SearchStrategy:
  """Patterns of up to four atoms joined by `|`, `&`, `-`, moved or not."""
  return st.recursive(
    _atoms,
    lambda inner: st.one_of(
      st.builds(
        lambda a, b, how: (a | b, a & b, a - b)[how],
        inner,
        inner,
        st.integers(0, 2),
      ),
      st.builds(patterns.Moved, inner, st.integers(0, 9)),
    ),
    max_leaves=4,
  )


def sums_strategy() -> st.SearchStrategy:
  """Sums of two patterns, moved, restricted, or neither."""
  plain = patterns_strategy()
  return st.builds(
    lambda a, b, c, how: (a + b, patterns.Moved(a + b, 3), (a + b) & c)[how],
    plain,
    plain,
    plain,
    st.integers(0, 2),
  )
