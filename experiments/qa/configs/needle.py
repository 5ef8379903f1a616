r"""A sentence to find anywhere in 2,048 tokens: minutes on 2 CPU cores.

Each document is a piece of Python's library with one line that gives a code,
and the question asks for it. The dense reader sees the first 512 tokens only,
as short models do; it takes as many steps.

Command:
  python -m experiments.qa.main
  python -m experiments.qa.main --workdir=runs/qa_dense \
    --config=experiments/qa/configs/needle.py:dense

Hardware: 2 CPU cores, shared with other work.
Time: 4 min 35 s in all, and 1 min 20 s.
Result: exact match on 100 held-out questions, of which 74 have their answer
beyond token 512: longformer, bigbird and etc 96.0 (beyond: 94.6), dense 26.0
(0.0). A search for words needs no learning and finds all. Seed 0.
"""

from experiments.qa import train

_OPTIONS = {
  "bigbird": {"block": 32, "num_random": 1},
  "longformer": {"window": 32},
  "sliding_window": {"window": 17, "right": 16},
}


def get_config(method: str = "longformer") -> train.Config:
  """The configuration, with the attention method that `method` names.

  `etc` is a model of its own, with a global token for every line.
  """
  etc = method == "etc"
  return train.Config(
    corpus="needle",
    needle_documents=800,
    needle_held_out=100,
    needle_names=8,
    needles=1,
    eval_questions=48,
    tokenizer="bpe",
    vocab_size=1024,
    length=512 if method == "dense" else 2048,
    max_question=16,
    max_answer=8,
    empty_rate=0.0,
    model="etc" if etc else "encoder",
    positions="none" if etc else "rotary",
    etc_radius=16,
    max_sentences=96,
    method="dense" if etc else method,
    method_options=_OPTIONS.get(method, {}),
    width=32,
    num_layers=2,
    num_heads=2,
    mlp_width=64,
    steps=250,
    batch_size=8,
    learning_rate=6e-3,
    warmup_steps=30,
    final_learning_rate=0.05,
    beta2=0.98,
    log_every=25,
    eval_every=125,
    checkpoint_every=125,
  )
