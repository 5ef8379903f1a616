"""The smallest setting: whether everything runs, in under a minute.

Command:
  python -m experiments.summarization.main \
    --config=experiments/summarization/configs/smoke.py

Hardware: any.
Time: under a minute on 2 CPU cores.
Result: nothing to speak of: 20 steps.
"""

from experiments.summarization import train


def get_config() -> train.Config:
  """The configuration."""
  return train.Config(
    corpus="docstrings",
    train_articles=400,
    vocab_size=600,
    length=128,
    target_length=16,
    method="longformer",
    method_options={"window": 32, "dilated_heads": 0},
    width=32,
    num_layers=1,
    decoder_layers=1,
    num_heads=2,
    num_beams=2,
    eval_articles=8,
    watched_articles=8,
    steps=20,
    batch_size=4,
    warmup_steps=5,
    log_every=10,
    eval_every=10,
    checkpoint_every=10,
  )
