"""Longformer's small character model, phase by phase: windows grow in stages.

Twelve layers of width 512 and 8 heads. Windows widen with depth, two heads of
the upper layers are dilated, and every phase doubles length and windows, halves
the learning rate, and starts from the parameters of the one before (Beltagy et
al., 2020, https://arxiv.org/abs/2004.05150, section 4 and table 12). The paper
gives the windows of the lowest and the highest layer, 32 and 8192; those
between double step by step here, and a window wider than the row is all of it.
Positions are rotary, where the paper has relative sinusoids.

Commands:
  python -m experiments.lm.main --workdir=runs/char1 \
    --config=experiments/lm/configs/longformer_char.py:1 \
    --config.path=data/enwik8
  python -m experiments.lm.main --workdir=runs/char2 \
    --config=experiments/lm/configs/longformer_char.py:2 \
    --config.path=data/enwik8 --config.initial=runs/char1
  and so on to phase 5. For text8 add --config.corpus=text8 and its path.

Hardware: meant for several accelerators of 80 GB. Time: not measured.
Result: not run; the paper's are 1.00 (enwik8) and 1.10 (text8) bits per
character, evaluated on rows of 32,256.
"""

from experiments.common import files
from experiments.lm import train

_LAYERS = 12
_LENGTHS = (2048, 4096, 8192, 16384, 23040)
_STEPS = (430_000, 50_000, 50_000, 35_000, 5_000)
_BATCHES = (32, 32, 16, 16, 16)
# Gaps of 0, 1, 2 and 3 tokens between keys.
_DILATIONS = [1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4]


def get_config(phase: str = "1") -> train.Config:
  """The configuration of a phase, 1 to 5."""
  if phase not in ("1", "2", "3", "4", "5"):
    raise files.UserError(
      f"longformer_char.py:{phase}: phases are 1 to 5, one for each stage of "
      "the windows."
    )
  at = int(phase) - 1
  length = _LENGTHS[at]
  doublings = [8 * layer // (_LAYERS - 1) + at for layer in range(_LAYERS)]
  return train.Config(
    corpus="enwik8",
    path="data/enwik8",
    length=length,
    eval_stride=512,
    eval_windows=64,
    method="longformer",
    method_options={
      "window": [min(32 * 2**d, 2 * (length - 1)) for d in doublings],
      "dilation": _DILATIONS,
      "dilated_heads": 2,
    },
    width=512,
    num_layers=_LAYERS,
    num_heads=8,
    mlp_width=2048,
    dropout=0.2,
    remat="full",
    steps=_STEPS[at],
    batch_size=_BATCHES[at],
    learning_rate=2.5e-4 / 2**at,
    warmup_steps=min(_STEPS[at] // 10, 10_000),
    final_learning_rate=1.0,
    weight_decay=0.01,
    clip_norm=0.25,
    log_every=50,
    eval_every=2_000,
    checkpoint_every=1_000,
    sample_tokens=1024,
  )
