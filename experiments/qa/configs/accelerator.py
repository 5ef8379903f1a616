r"""Long questions with the sizes of Longformer, BigBird and ETC.

Base models of 12 layers, width 768 and rows of 4,096 tokens, on files of
Natural Questions, HotpotQA, TriviaQA or WikiHop that the user has. The papers
start from RoBERTa's parameters, these runs from nothing or from those of
`--config.initial`: so theirs are not the results to expect. Blocks, windows and
global tokens are theirs; learning rates, batches and steps are of their order.

Command, of `<corpus>` or `<corpus>_<method>`:
  python -m experiments.qa.main --workdir=runs/qa_hotpotqa \
    --config=experiments/qa/configs/accelerator.py:hotpotqa \
    --config.train_path=hotpot_train_v1.1.json \
    --config.test_path=hotpot_dev_distractor_v1.json \
    --config.tokenizer=tokenizer.json

Hardware: meant for one accelerator or more. Time: not measured. Result: not
run.
"""

from experiments.common import files
from experiments.qa import train

_OPTIONS = {
  # Zaheer et al., 2020, https://arxiv.org/abs/2007.14062, appendix E.
  "bigbird": {"block": 64, "num_random": 3},
  # Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, sections 5 and 6.
  "longformer": {"window": 512},
  "dense": {},
  # Ainslie et al., 2020, https://arxiv.org/abs/2004.08483: a model of its own.
  "etc": {},
}
# Corpus -> method, learning rate, rows a batch, steps, stride, and sentences
# with a global token in ETC; the papers have 230 to 430 with the question.
_CORPORA = {
  "hotpotqa": ("longformer", 3e-5, 32, 14_000, 0, 192),
  "natural_questions": ("bigbird", 5e-5, 128, 14_000, 2048, 160),
  "triviaqa": ("longformer", 3e-5, 32, 20_000, 0, 256),
  "wikihop": ("longformer", 3e-5, 32, 20_000, 0, 256),
}


def get_config(what: str = "hotpotqa") -> train.Config:
  """The configuration of a corpus, with the method after it if there is one."""
  corpus, method = what, ""
  for name in _OPTIONS:
    if what.endswith(f"_{name}"):
      corpus, method = what.removesuffix(f"_{name}"), name
  if corpus not in _CORPORA:
    raise files.UserError(
      f"corpora are {', '.join(_CORPORA)}, with _ and one of "
      f"{', '.join(_OPTIONS)} after it or nothing; got {what!r}."
    )
  usual, rate, rows, steps, stride, sentences = _CORPORA[corpus]
  method = method or usual
  etc = method == "etc"
  return train.Config(
    corpus=corpus,
    eval_questions=500,
    tokenizer="bpe",
    vocab_size=32_768,
    length=4096,
    stride=stride,
    max_question=64,
    empty_rate=0.05 if stride else 0.0,
    max_sentences=sentences,
    model="etc" if etc else "encoder",
    positions="none" if etc else "rotary",
    method="dense" if etc else method,
    method_options=_OPTIONS[method],
    global_projections=method == "longformer",
    width=768,
    num_layers=12,
    num_heads=12,
    dropout=0.1,
    remat="full",
    dtype="bfloat16",
    steps=steps,
    batch_size=rows,
    accumulate=8,
    learning_rate=rate,
    warmup_steps=1000,
    final_learning_rate=0.0,
    weight_decay=0.01,
    beta2=0.999,
    log_every=50,
    eval_every=2000,
    checkpoint_every=1000,
  )
