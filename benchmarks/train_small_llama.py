"""Train the small Llama of `benchmarks/small_llama` on the sources of Python's standard library.

    python benchmarks/train_small_llama.py            # about half an hour on one core; the folder is made anew
    python benchmarks/train_small_llama.py --out DIR  # elsewhere

A `LlamaForCausalLM` of transformers with grouped-query heads, 0.9 million parameters, a vocabulary of 1,024 byte pairs.
Killed at any moment, the same command goes on from the last checkpoint, with the same numbers: what a step reads
depends on its number alone. `training.jsonl` in the folder is the log.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from library_text import documents
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foveate.files import read_json, replace, write_json

FOLDER = Path(__file__).resolve().parent / "small_llama"
VOCABULARY = 1024
END = "<|end|>"
#: Positions that the model is to know. Most samples are shorter.
LONGEST = 16_384
CONFIG = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
    "tie_word_embeddings": True,
    "max_position_embeddings": LONGEST,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},  # what older transformers take as well
    "bos_token_id": 0,
    "eos_token_id": 0,
}
#: Of Muon for the layers' matrices, and of AdamW for the embedding and the norms.
RATES = {"muon": 1e-2, "adamw": 3e-3}
WARM_UP, DECAY = 40, 0.8
#: The share of samples in whose second half a piece of the first half comes again: what far-away tokens are good for is
#: learned sooner than from the texts' own repetitions.
COPIED = 0.25
SEED = 0
EVERY = 50  # steps between checkpoints


@dataclass(frozen=True)
class Stage:
    """Steps of one kind; each reads ``TOKENS`` tokens, or one sample if that is longer.

    Attributes:
        steps: how many.
        length: tokens of a sample.
        spread: the share of samples whose positions go up to ``LONGEST``, with gaps in them.
    """

    steps: int
    length: int
    spread: float = 0.0


STAGES = (Stage(1100, 512), Stage(500, 2048), Stage(500, 2048, spread=0.5), Stage(170, 8192, spread=0.5))
TOKENS = 4096
STEPS = sum(stage.steps for stage in STAGES)


def stage_of(step: int) -> Stage:
    for stage in STAGES:
        if step < stage.steps:
            return stage
        step -= stage.steps
    raise ValueError(f"there are {STEPS} steps")


def rate_of(step: int) -> float:
    """The part of the full rate: warm-up, constant, and a line down to zero at the end."""
    return min((step + 1) / WARM_UP, 1.0, (STEPS - step) / (DECAY * STEPS))


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte pairs of the training texts; no text is outside it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=END, eos_token=END, pad_token=END, model_max_length=LONGEST
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """All texts in a row, each behind an end of the one before: ``(tokens,)`` int64."""
    rows = tokenizer.backend_tokenizer.encode_batch(texts)
    return torch.cat([torch.tensor([0, *row.ids]) for row in rows])


def batch(tokens: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a step reads: ``x``, ``y`` and positions, each ``(B, L)`` int64."""
    stage, generator = stage_of(step), torch.Generator().manual_seed(SEED + step)
    size, length = max(1, TOKENS // stage.length), stage.length
    starts = torch.randint(len(tokens) - length - 1, (size, 1), generator=generator)
    rows = tokens[starts + torch.arange(length + 1)]
    for row, share, piece, source, target in zip(rows, *torch.rand(4, size, generator=generator).tolist(), strict=True):
        if share < COPIED:
            count = 16 + int(piece * (length // 4 - 16))
            source, target = (int(place * (length // 2 - count)) for place in (source, target))
            row[length // 2 + target :][:count] = row[source : source + count].clone()
    # Gaps in the positions show the model distances that a sample is too short for (Zhu et al., 2023, PoSE).
    gap = torch.rand(size, 1, generator=generator) * (LONGEST - length)
    gap *= torch.rand(size, 1, generator=generator) < stage.spread
    where = torch.rand(size, 1, generator=generator) * length
    positions = torch.arange(length) + (torch.arange(length) >= where) * gap.long()
    return rows[:, :-1], rows[:, 1:], positions


def loss_of(model: LlamaForCausalLM, x: Tensor, y: Tensor, positions: Tensor | None = None) -> Tensor:
    """Mean nats per token."""
    # transformers reads a gap in the positions as the border of a document, except where there is a mask.
    gaps = positions is not None and bool((positions.diff() != 1).any())
    mask = torch.ones_like(x) if gaps else None
    logits = model(input_ids=x, position_ids=positions if gaps else None, attention_mask=mask, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), y.flatten())


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, tokens: Tensor, length: int, samples: int) -> float:
    """Mean nats per token over samples evenly apart."""
    model.eval()
    starts = torch.linspace(0, len(tokens) - length - 1, samples).long()
    losses = [loss_of(model, tokens[None, s : s + length], tokens[None, s + 1 : s + length + 1]) for s in starts]
    model.train()
    return float(torch.stack(losses).mean())


def optimizers_of(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the others; norms do not decay."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    others = [
        {"params": [model.get_input_embeddings().weight], "weight_decay": 0.1},
        {"params": norms, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(matrices, lr=RATES["muon"], weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=RATES["adamw"], betas=(0.9, 0.95), fused=True),
    ]


def keep(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    """A checkpoint: weights, the optimizers' averages and the step, in one file that replaces the one before."""
    tensors = {f"weight/{name}": p.detach() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
    about = {"step": str(step), "seconds": str(seconds)}
    replace(path, lambda temporary: save_file(tensors, temporary, metadata=about))


def restore(path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Read a checkpoint back; 0 steps where there is none."""
    if not path.exists():
        return 0, 0.0
    parameters = dict(model.named_parameters())
    with safe_open(path, "pt") as file, torch.no_grad():
        for entry in file.keys():  # noqa: SIM118 (it is no dictionary)
            key, _, name = entry.partition("/")
            if key == "weight":
                parameters[name].copy_(file.get_tensor(entry))
                continue
            for optimizer in optimizers:
                if any(parameters[name] is p for group in optimizer.param_groups for p in group["params"]):
                    optimizer.state[parameters[name]][key] = file.get_tensor(entry)
        about = file.metadata()
    return int(about["step"]), float(about["seconds"])


def log(path: Path, **values: object) -> None:
    """Append a line, and show it."""
    line = json.dumps(values)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)


def rewind(path: Path, step: int) -> None:
    """Drop lines about steps that will be done again."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if step and json.loads(line).get("step", 0) <= step]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def train(out: Path) -> None:
    """Train to the end, and write weights, tokenizer and log."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    texts = list(documents("train").values())
    tokenizer = make_tokenizer(texts)
    tokens = encode(tokenizer, texts)
    kept = {split: encode(tokenizer, list(documents(split).values())) for split in ("validation", "test")}
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    optimizers = optimizers_of(model)
    history, checkpoint = out / "training.jsonl", out / "checkpoint.safetensors"
    first, before = restore(checkpoint, model, optimizers)
    begun = time.perf_counter() - before
    rewind(history, first)
    if first == 0:
        log(
            history,
            python=platform.python_version(),
            torch=torch.__version__,
            transformers=transformers.__version__,
            characters=sum(map(len, texts)),
            tokens=len(tokens),
            sha256=hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            parameters=sum(p.numel() for p in model.parameters()),
        )
    recent: list[float] = []
    for step in range(first, STEPS):
        x, y, positions = batch(tokens, step)
        for rate, optimizer in zip(RATES.values(), optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_of(step)
        loss = loss_of(model, x, y, positions)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise RuntimeError(f"the loss of step {step} is {recent[-1]}: nothing is written")
        if (step + 1) % EVERY == 0 or step + 1 == STEPS:
            log(
                history,
                step=step + 1,
                length=stage_of(step).length,
                loss=round(sum(recent) / len(recent), 4),
                validation=round(evaluate(model, kept["validation"], 2048, 8), 4),
                seconds=round(time.perf_counter() - begun),
            )
            # After the line: what a kill in between leaves twice is dropped when it is done again.
            keep(checkpoint, model, optimizers, step + 1, time.perf_counter() - begun)
            recent.clear()
    lengths = (2048, 8192, LONGEST)
    scores = {length: round(evaluate(model, kept["test"], length, 4 * LONGEST // length), 4) for length in lengths}
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    about = out / "tokenizer_config.json"  # by the name that older transformers know as well
    write_json(about, {**read_json(about), "tokenizer_class": "PreTrainedTokenizerFast"})
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    log(history, test=scores, seconds=round(time.perf_counter() - begun), weights=weights)
    checkpoint.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of weights, tokenizer and log")
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
