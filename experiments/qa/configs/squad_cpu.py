r"""SQuAD's development articles whole, by a small reader: minutes on a CPU.

They are split by article, so the result is none of SQuAD's; so few questions
are too few to learn to read from nothing, see docs/question_answering.md.

Command:
  python -m experiments.common.fetch squad
  python -m experiments.qa.main --workdir=runs/qa_squad_cpu \
    --config=experiments/qa/configs/squad_cpu.py

Hardware: 2 CPU cores, shared with other work.
Time: 8 min 51 s in all.
Result: F1 1.7, exact match 0.0 on 200 held-out questions; every floor wins, the
most similar sentence with F1 19.0. Seed 0. `squad.py` is for an accelerator.
"""

from experiments.qa import train

_OPTIONS = {
  "bigbird": {"block": 32, "num_random": 1},
  "longformer": {"window": 32},
  "sliding_window": {"window": 17, "right": 16},
}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names."""
  return train.Config(
    corpus="squad",
    eval_questions=50,
    test_questions=200,
    tokenizer="bpe",
    vocab_size=4096,
    length=1024,
    stride=768,
    max_question=48,
    empty_rate=0.1,
    method=method,
    method_options=_OPTIONS.get(method, {}),
    width=64,
    num_layers=2,
    num_heads=4,
    dropout=0.1,
    steps=250,
    batch_size=16,
    learning_rate=2e-3,
    warmup_steps=30,
    final_learning_rate=0.05,
    beta2=0.98,
    log_every=25,
    eval_every=0,
    checkpoint_every=125,
  )
