"""arXiv at 4096 tokens, the size of LED's base model, on a GPU or TPU.

Command:
  python -m experiments.summarization.main --workdir=runs/arxiv \
    --config=experiments/summarization/configs/accelerator.py \
    --config.path=arxiv-dataset

Hardware: one accelerator with 80 GB.
Time: not measured.
Result: not run. BigBird-Pegasus has 46.63 / 19.02 / 41.77 on arXiv from
pretrained parameters; from none, as here, it will be far lower.
"""

from experiments.summarization import train


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  options = {
    "longformer": {"window": 512, "num_global": 1},
    "bigbird": {"block": 64, "num_random": 3},
  }
  return train.Config(
    corpus="folder",
    path="arxiv-dataset",
    vocab_size=32_000,
    length=4096,
    target_length=256,
    method=method,
    method_options=options.get(method, {}),
    norm="post",
    width=768,
    num_layers=6,
    decoder_layers=6,
    num_heads=12,
    dropout=0.1,
    remat="dots",
    dtype="bfloat16",
    num_beams=5,
    eval_articles=0,
    steps=100_000,
    batch_size=32,
    accumulate=4,
    learning_rate=1e-4,
    warmup_steps=10_000,
    log_every=100,
    eval_every=2_000,
    checkpoint_every=2_000,
  )
