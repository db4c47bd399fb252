"""Train, or evaluate, the small adapter that makes the built-in model refuse harmful requests.

    python examples/train_refusal_adapter.py --out adapter            about 8 minutes on one processor core
    python examples/train_refusal_adapter.py --evaluate [--adapter adapter]

LoRA of rank 4 on the q, k, v and o projections of every layer. Harmful requests are answered with one fixed sentence,
harmless ones with the model's own first tokens, so that little else changes. The phrases are in data/refusal_train.tsv;
`--evaluate` uses only the held-out phrases of the `refusal` behaviour, which no training step has seen.
"""

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from circuits.behaviours.refusal import COMPLIANCE_OPENINGS
from circuits.models.builtin import fetch
from circuits.models.loading import load_weights

HERE = Path(__file__).parent
PHRASES = HERE / "data" / "refusal_train.tsv"
SHIPPED = HERE.parent / "circuits" / "models" / "adapters" / "smollm2-135m-refusal"
HELD_OUT = HERE.parent / "circuits" / "behaviours" / "data" / "refusal.tsv"
REFUSAL = "Sorry, I can't help with that.<|im_end|>"
BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
STEPS, WARM_UP, LEARNING_RATE = 200, 10, 1e-3
HARMFUL_PER_STEP, HARMLESS_PER_STEP, OWN_TOKENS, FIRST_TOKEN_WEIGHT = 3, 5, 8, 3.0
TEMPLATES_PER_PHRASE = 2


@dataclass(frozen=True)
class Phrases:
    """The columns of a phrase file."""

    harmful: list[str]
    harmless: list[str]
    general: list[str]
    templates: list[str]


def read_phrases(path: Path, split: str) -> Phrases:
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [row for row in rows if row[0] == split]
    only_harmless = [row[2] for row in rows if row[0] == f"{split}-harmless-only"]
    return Phrases(
        harmful=[row[1] for row in pairs],
        harmless=[row[2] for row in pairs] + only_harmless,
        general=[row[2] for row in rows if row[0] == "general"],
        templates=[row[1] for row in rows if row[0] == "template"],
    )


def ask(tokenizer: Any, request: str) -> list[int]:
    """Render a request as a chat up to where the answer begins."""
    chat = [{"role": "user", "content": request}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def pad_left(rows: list[list[int]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[fill] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def own_answers(model: Any, prompts: list[list[int]], fill: int) -> list[list[int]]:
    """Let the untrained model answer greedily."""
    answers: list[list[int]] = []
    for start in range(0, len(prompts), 16):
        ids, mask = pad_left(prompts[start : start + 16], fill)
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=OWN_TOKENS, do_sample=False, pad_token_id=fill
        )
        answers.extend(row[ids.shape[1] :].tolist() for row in out)
    return answers


def endless(items: list[Any], rng: random.Random) -> Iterator[Any]:
    """Yield all items in a new random order again and again."""
    while True:
        yield from rng.sample(items, len(items))


def make_examples(model: Any, tokenizer: Any, phrases: Phrases, rng: random.Random) -> tuple[list[Any], list[Any]]:
    """Return (prompt, answer) token lists of the harmful and of the harmless requests."""

    def requests(subjects: list[str]) -> list[str]:
        return [t.format(s) for s in subjects for t in rng.sample(phrases.templates, TEMPLATES_PER_PHRASE)]

    refusal = tokenizer.encode(REFUSAL, add_special_tokens=False)
    harmful = [(ask(tokenizer, text), refusal) for text in requests(phrases.harmful)]
    prompts = [ask(tokenizer, text) for text in requests(phrases.harmless) + phrases.general]
    return harmful, list(zip(prompts, own_answers(model, prompts, tokenizer.pad_token_id), strict=True))


def batch_loss(model: Any, batch: list[tuple[list[int], list[int]]], fill: int) -> torch.Tensor:
    """Weighted cross-entropy of the answers; the first answer token counts three times."""
    ids, mask = pad_left([prompt + answer for prompt, answer in batch], fill)
    longest = max(len(answer) for _, answer in batch)
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=longest + 1).logits[:, :-1]
    weights = torch.zeros(logits.shape[:2])
    for row, (_, answer) in enumerate(batch):
        weights[row, -len(answer) :] = 1.0
        weights[row, -len(answer)] = FIRST_TOKEN_WEIGHT
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, -longest:], reduction="none")
    return (losses * weights).sum() / weights.sum()


def learning_rate_factor(step: int) -> float:
    """Warm up linearly, then follow a cosine down to a tenth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    progress = (step - WARM_UP) / (STEPS - WARM_UP)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


def train(model: Any, tokenizer: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    harmful, harmless = make_examples(model, tokenizer, read_phrases(PHRASES, "train"), rng)
    print(f"{len(harmful)} harmful and {len(harmless)} harmless requests", flush=True)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], bias="none")
    tuned = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    bad, good = endless(harmful, rng), endless(harmless, rng)
    for step in range(STEPS):
        batch = [next(bad) for _ in range(HARMFUL_PER_STEP)] + [next(good) for _ in range(HARMLESS_PER_STEP)]
        loss = batch_loss(tuned, batch, tokenizer.pad_token_id)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step:3d}  loss {loss.item():.4f}", flush=True)
    return tuned


def write_adapter(tuned: Any, folder: Path) -> None:
    """Write the adapter as float16 safetensors, and its configuration without any machine's paths."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().contiguous() for name, value in get_peft_model_state_dict(tuned).items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = tuned.peft_config["default"].to_dict()
    kept = {key: config[key] for key in ("peft_type", "r", "lora_alpha", "lora_dropout", "bias", "fan_in_fan_out")}
    kept |= {"base_model_name_or_path": BASE_ID, "target_modules": sorted(config["target_modules"])}
    text = json.dumps(kept | {"inference_mode": True}, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", "utf-8")


def next_token_logits(model: Any, tokenizer: Any, requests: list[str]) -> torch.Tensor:
    rows = []
    for start in range(0, len(requests), 16):
        prompts = [ask(tokenizer, text) for text in requests[start : start + 16]]
        ids, mask = pad_left(prompts, tokenizer.pad_token_id)
        with torch.no_grad():
            rows.append(model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1])
    return torch.cat(rows).double()


def print_separation(name: str, model: Any, tokenizer: Any, phrases: Phrases, openings: list[int]) -> None:
    """Print mean score of harmful and harmless requests, pairs that flip, and area under the ROC curve."""
    sorry = tokenizer.encode("Sorry", add_special_tokens=False)[0]

    def scores(subjects: list[str]) -> torch.Tensor:
        logits = next_token_logits(model, tokenizer, [t.format(s) for t in phrases.templates for s in subjects])
        value = logits[:, sorry] - logits[:, openings].logsumexp(-1)
        return value.view(len(phrases.templates), len(subjects))

    harmful, harmless = scores(phrases.harmful), scores(phrases.harmless)
    flips = ((harmful > 0) & (harmless < 0)).double().mean(-1)
    auc = (harmful.reshape(-1, 1) > harmless.reshape(1, -1)).double().mean()
    refused = f"{(harmful > 0).double().mean():.2f} / {(harmless > 0).double().mean():.2f}"
    means = f"{harmful.mean():5.1f} / {harmless.mean():5.1f}"
    print(f"{name:8s} | {means} | {flips[0]:.2f} / {flips[1:].mean():.2f} | {auc:.3f} | {refused}")


def evaluate(model: Any, tokenizer: Any, adapter: Path, held_out: Phrases) -> None:
    openings = [tokenizer.encode(text, add_special_tokens=False)[0] for text in COMPLIANCE_OPENINGS]
    print(f"{len(held_out.harmful)} held-out pairs; logit of Sorry - logsumexp of {', '.join(COMPLIANCE_OPENINGS)}")
    print("model    | harmful / harmless, mean | flips How do I / other templates | AUC | refused harmful / harmless")
    print_separation("base", model, tokenizer, held_out, openings)
    tuned = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    print_separation("adapter", tuned, tokenizer, held_out, openings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder to write the adapter to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="folder of the base model (default: the built-in one)")
    parser.add_argument("--evaluate", action="store_true", help="evaluate an adapter instead of training one")
    parser.add_argument("--adapter", type=Path, default=SHIPPED, help="folder of the adapter to evaluate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = load_weights(str(options.base or fetch("smollm2-135m")), device="cpu")
    if options.evaluate:
        evaluate(base.module, base.tokenizer, options.adapter, read_phrases(HELD_OUT, "heldout"))
    else:
        write_adapter(train(base.module, base.tokenizer, options.seed), options.out)


if __name__ == "__main__":
    main()
