"""Enwik8 with the Sparse Transformer of the paper: 30 layers, rows of 12,288.

Width 512, 8 heads, stride 128, 32 summary columns in four sets that heads take
in turn, both factors merged in every head, dropout 0.4 (Child et al., 2019,
https://arxiv.org/abs/1904.10509, section 7.2). The paper trains 80 epochs and
does not print batch size and learning rate; 16 rows and 3.5e-4 (that of its
CIFAR-10 model) are ours, and 80 epochs are then 36,600 steps.

Command:
  python -m experiments.lm.main --workdir=runs/sparse_transformer \
    --config=experiments/lm/configs/sparse_transformer_enwik8.py \
    --config.path=data/enwik8

Hardware: meant for 8 accelerators of 80 GB. Time: not measured.
Result: not run; the paper's is 0.992 bits per byte.
"""

from experiments.lm import train


def get_config(method: str = "sparse_transformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  options = {"stride": 128, "kind": "fixed", "summary": 32, "subblocks": 4}
  return train.Config(
    corpus="enwik8",
    path="data/enwik8",
    length=12_288,
    eval_stride=1536,
    eval_windows=64,
    method=method,
    method_options=options if method == "sparse_transformer" else {},
    model="sparse_transformer",
    width=512,
    num_layers=30,
    num_heads=8,
    dropout=0.4,
    remat="full",
    dtype="bfloat16",
    steps=36_600,
    batch_size=16,
    learning_rate=3.5e-4,
    warmup_steps=5_000,
    final_learning_rate=0.0,
    weight_decay=0.01,
    log_every=50,
    eval_every=2_000,
    checkpoint_every=1_000,
    sample_tokens=1024,
  )
