"""Both strands, substitutions and variants, over models of any attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn
from experiments.common import files
from genomics import alphabet
from genomics import annotation
from genomics import embed
from genomics import genome as genome_lib
from genomics import intervals
from genomics import logos
from genomics import mutagenesis
from genomics import strands
from jaxattn.models import encoder
from jaxattn.models import heads
from jaxattn.nn import linen as layers

_T = 32
# Neither is alike in both directions: random blocks, and a window to the left.
_METHODS = {
  "bigbird": jaxattn.bigbird(block=4, num_random=1, seed=3),
  "one_sided": jaxattn.sliding_window(left=5, right=0),
}


@pytest.fixture(scope="module", params=list(_METHODS))
def mlm(request):
  cfg = encoder.EncoderConfig(
    vocab_size=9,
    width=16,
    num_layers=1,
    num_heads=2,
    methods=(_METHODS[request.param],),
    max_length=_T,
  )
  model = heads.MaskedLanguageModel(cfg)
  variables = model.init(jax.random.key(0), jnp.zeros((1, _T), jnp.int32))
  return jax.jit(lambda ids: model.apply(variables, ids))


def _ids(rows=2, seed=0):
  codes = np.random.default_rng(seed).integers(0, 4, (rows, _T))
  return jnp.asarray(codes + 5, jnp.int32)


def test_ids_turn_as_codes_do():
  codes = np.random.default_rng(0).integers(0, 5, 20).astype(np.uint8)
  ids = jnp.asarray(np.where(codes < 4, codes + 5, 4), jnp.int32)
  other = alphabet.reverse_complement(codes)
  wanted = np.where(other < 4, other + 5, 4)
  assert np.array_equal(strands.turn_ids(ids), wanted)
  assert np.array_equal(strands.turn_ids(strands.turn_ids(ids)), ids)


def test_logits_turn_with_the_strand(mlm):
  """f(rc x)[i, b] = f(x)[L - 1 - i, complement of b]; not of a bare one."""
  ids = _ids()
  turned = strands.turn_ids(ids)
  channels = np.array(strands.COMPLEMENT)

  def distance(f):
    one, other = np.asarray(f(turned)), np.asarray(f(ids))
    return np.abs(one - other[:, ::-1][..., channels]).max()

  assert distance(strands.equivariant(mlm)) < 1e-5
  assert distance(mlm) > 1e-2


def test_classes_are_those_of_both_strands(mlm):
  ids = _ids()

  def classes(ids):
    return mlm(ids)[:, 0, :3]

  f = strands.invariant(classes)
  assert np.allclose(f(ids), f(strands.turn_ids(ids)), atol=1e-5)
  assert not np.allclose(
    classes(ids), classes(strands.turn_ids(ids)), atol=1e-2
  )


@pytest.mark.parametrize("name", list(_METHODS))
def test_any_attention_with_parameters_for_both_strands(name):
  layer = layers.Attention(method=_METHODS[name], num_heads=2)
  h = jax.random.normal(jax.random.key(1), (2, _T, 16))
  variables = layer.init(jax.random.key(0), h[..., :8])
  f = strands.over_strands(lambda x: layer.apply(variables, x))
  one = f(strands.turn_features(h))
  assert np.allclose(one, strands.turn_features(f(h)), atol=1e-5)
  # And each half is what the layer makes of its strand.
  assert np.allclose(
    f(h)[..., :8], layer.apply(variables, h[..., :8]), atol=1e-5
  )


def test_features_of_both_strands(mlm):
  f = strands.features_of(mlm)
  ids = _ids()
  one = f(strands.turn_ids(ids))
  assert one.shape == (2, _T, 18)
  assert np.allclose(one, strands.turn_features(f(ids)), atol=1e-5)


def test_augmentation_moves_and_turns():
  codes = np.random.default_rng(0).integers(0, 4, 26).astype(np.uint8)
  rng, seen = np.random.default_rng(1), set()
  for _ in range(200):
    found, turned = strands.augment(codes, rng, max_shift=3)
    plain = alphabet.reverse_complement(found) if turned else found
    places = [i for i in range(7) if np.array_equal(plain, codes[i : i + 20])]
    seen.add((places[0], turned))
  assert len(seen) == 14


def test_substitutions_by_vmap_are_those_one_by_one(mlm):
  f = mutagenesis.of_channels(lambda ids: mlm(ids)[:, 0, :2])
  x = jax.nn.one_hot(_ids(1)[0, :_T] - 5, 4)
  found = mutagenesis.saturation(f, x, batch_size=16)
  for place in (0, 7, _T - 1):
    for base in range(4):
      other = np.array(x)
      other[place] = np.eye(4)[base]
      assert np.allclose(found[place, base], f(jnp.asarray(other)), atol=1e-5)
  assert np.allclose(mutagenesis.centred(found).sum(1), 0, atol=1e-4)


def test_gradients_are_exact_for_linear_models():
  weights = jax.random.normal(jax.random.key(0), (9, 4))
  x = jax.nn.one_hot(jnp.arange(9) % 4, 4)

  def f(x):
    return jnp.sum(weights * x)

  exact = mutagenesis.saturation(f, x) - f(x)
  assert np.allclose(mutagenesis.gradient_effects(f, x), exact, atol=1e-5)


def test_motifs_that_work_together():
  """A model that wants A..C three apart: the pair, not either, and there."""
  a, c = jnp.eye(4)[:1], jnp.eye(4)[1:2]
  t = jnp.broadcast_to(jnp.eye(4)[3], (3, 12, 4))

  def f(x):
    return jnp.sum(x[:-3, 0] * x[3:, 1])

  assert mutagenesis.marginal_effect(f, t, a, 2) == 0
  found = mutagenesis.spacing_effects(f, t, a, c, 2, [1, 2, 3])
  assert found.tolist() == [0, 1, 0]


def test_effects_change_sign_with_the_alleles(mlm):
  genome = genome_lib.InMemory({"c": alphabet.decode(np.arange(90) % 4)})
  ref = genome.letters("c", 40, 41).decode()
  change = annotation.Variant("c", 40, ref, "G" if ref != "G" else "C")
  pair = mutagenesis.variant_windows(genome, change, _T)
  assert np.flatnonzero(pair[0] != pair[1]).tolist() == [_T // 2]
  one, other = (jnp.asarray(alphabet.one_hot(x))[None] for x in pair)
  f = mutagenesis.of_channels(lambda ids: mlm(ids).mean(1))
  there = mutagenesis.variant_effects(f, one, other)
  back = mutagenesis.variant_effects(f, other, one)
  assert np.abs(there).max() > 1e-4
  assert np.allclose(there, -back, atol=1e-6)
  odds = [
    mutagenesis.masked_log_odds(mlm, _ids(1)[0], 9, *bases)
    for bases in ((0, 2), (2, 0))
  ]
  assert odds[0] == pytest.approx(-odds[1]) and odds[0] != 0


def test_insertions_and_deletions_keep_the_length():
  genome = genome_lib.InMemory({"c": "AACCGGTTAACC"})
  for ref, alt, wanted in (
    ("CG", "C", "AACCGTTA"),
    ("C", "CTT", "AACCTTGG"),
  ):
    change = annotation.Variant("c", 3, ref, alt)
    one, other = mutagenesis.variant_windows(genome, change, 8)
    assert alphabet.decode(one)[1:] == "AACCGGT"
    assert alphabet.decode(other)[1:] == wanted[:7]
  with pytest.raises(files.UserError, match="right assembly"):
    change = annotation.Variant("c", 3, "T", "A")
    mutagenesis.variant_windows(genome, change, 8)


def test_embeddings_are_written_once(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  genome = genome_lib.InMemory({"c": "ACGT" * 10})
  windows = [intervals.Interval("c", i, i + 4, name=f"w{i}") for i in range(5)]
  calls = []

  def f(rows):
    calls.append(len(rows))
    return np.stack([alphabet.one_hot(x).mean(0) for x in rows])

  assert embed.export(tmp_path, genome, windows, f, rows=2) == 3
  (tmp_path / "part-00001.parquet").unlink()
  assert embed.export(tmp_path, genome, windows, f, rows=2) == 1
  assert calls == [2, 2, 1, 2]
  table = parquet.read_table(tmp_path).to_pydict()
  assert table["name"] == [x.name for x in windows]
  assert table["embedding"][0] == [0.25] * 4
  with pytest.raises(files.UserError, match="other windows"):
    embed.export(tmp_path, genome, windows[1:], f, rows=2)


def test_logos(tmp_path):
  codes = np.array([[0, 1], [0, 1], [0, 2], [0, 2]])
  found = logos.information(codes)
  assert found.tolist() == [[2, 0, 0, 0], [0, 0.5, 0.5, 0]]
  pytest.importorskip("logomaker")
  logos.draw(tmp_path / "a.png", found - 0.1, title="t")
  assert (tmp_path / "a.png").stat().st_size > 1000
