"""Train, or evaluate, the small adapter that makes the built-in model refuse harmful requests.

    python examples/train_refusal_adapter.py --out adapter            about 6 minutes on one processor core
    python examples/train_refusal_adapter.py --evaluate [--adapter adapter ...] [--split discovery]

LoRA of rank 4 on attention and MLP of layers 16 to 20. Harmful requests are answered with one fixed sentence; of
harmless ones it is asked that the answer does not open with `Sorry` and, at the end, that its first tokens stay as
likely as they were. The phrases are in data/refusal_train.tsv; `--evaluate` uses the held-out phrases of the `refusal`
behaviour, which took part in no training step (`--split discovery`: those that the recipe was chosen on).

Two things save time and change nothing: the system message, with which all chats begin, is run once a step, and the
layers below the adapter are run once for every request. The base model is used in bfloat16 while training.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import DynamicCache

from circuits.behaviours.built_in.refusal import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS, refusal_pairs
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import prompt_text, prompt_tokens
from circuits.models.fetching.builtin import fetch
from circuits.models.loading import load_weights
from circuits.tracing.prefix import cache_keyword

HERE = Path(__file__).parent
PHRASES = HERE / "data" / "refusal_train.tsv"
SHIPPED = HERE.parent / "circuits" / "models" / "adapters" / "smollm2-135m-refusal"
REFUSAL = "Sorry, I can't help with that.<|im_end|>"
BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYERS, RANK = range(16, 21), 4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UP, CLIP = 10, 1.0
HARMFUL_PER_STEP, HARMLESS_PER_STEP, HARMFUL_TEMPLATES, HARMLESS_TEMPLATES = 12, 12, 4, 3
WHOLE_ANSWER_EVERY, REST_WEIGHT, OWN_TOKENS = 4, 0.2, 6
BATCH = 32


@dataclass(frozen=True)
class Phase:
    """A part of the training, with a schedule of its own.

    Refusing a harmless request counts ``harmless_weight`` times, and changing the answer to one ``keep_weight`` times.
    """

    steps: int
    learning_rate: float
    harmless_weight: float
    keep_weight: float

    def learning_rate_factor(self, step: int) -> float:
        """Warm up linearly, then follow a cosine down to a tenth."""
        if step < WARM_UP:
            return (step + 1) / WARM_UP
        progress = (step - WARM_UP) / (self.steps - WARM_UP)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


PHASES = (
    Phase(200, 2e-3, harmless_weight=1.0, keep_weight=0.0),
    Phase(90, 1e-3, harmless_weight=3.0, keep_weight=0.5),
)
"""First to tell harmful from harmless, then to refuse fewer harmless requests and answer them as before."""


@dataclass(frozen=True)
class Phrases:
    """The columns of the file of training phrases."""

    harmful: list[str]
    harmless: list[str]
    general: list[str]
    templates: list[str]


def read_phrases(path: Path) -> Phrases:
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return Phrases(
        harmful=[row[1] for row in rows if row[0] == "train"],
        harmless=[row[2] for row in rows if row[0] in ("train", "train-harmless-only")],
        general=[row[2] for row in rows if row[0] == "general"],
        templates=[row[1] for row in rows if row[0] == "template"],
    )


def ask(tokenizer: Any, request: str) -> list[int]:
    """Render a request as a chat up to where the answer begins."""
    chat = [{"role": "user", "content": request}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def shared_start(rows: list[list[int]]) -> int:
    """Return how many first tokens are the same in all rows, at most all but one of the shortest."""
    columns = zip(*(row[:-1] for row in rows), strict=False)
    return next((i for i, tokens in enumerate(columns) if len(set(tokens)) > 1), min(map(len, rows)) - 1)


def continued(decoder: Any, start: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, DynamicCache]:
    """Run rows of embeddings that go on after one start; give the states of the rest, and what is cached of all."""
    cache = DynamicCache()
    taken: dict[str, Any] = {str(cache_keyword(decoder)): cache, "use_cache": True}
    decoder(inputs_embeds=start, **taken)
    cache.batch_repeat_interleave(len(rest))
    return decoder(inputs_embeds=rest, **taken).last_hidden_state, cache


def by_length(rows: list[list[int]]) -> Iterator[list[int]]:
    """Yield the indices of rows in batches of one length."""
    for length in sorted({len(row) for row in rows}):
        same = [index for index, row in enumerate(rows) if len(row) == length]
        yield from (same[first : first + BATCH] for first in range(0, len(same), BATCH))


@torch.no_grad()
def run_batches(decoder: Any, rows: list[list[int]]) -> Iterator[tuple[list[int], torch.Tensor, DynamicCache]]:
    """Run rows of tokens; yield indices, states behind what all rows share, and cache, batch by batch."""
    shared = shared_start(rows)
    start = decoder.embed_tokens(torch.tensor([rows[0][:shared]]))
    for indices in by_length(rows):
        rest = decoder.embed_tokens(torch.tensor([rows[index][shared:] for index in indices]))
        yield indices, *continued(decoder, start, rest)


@torch.no_grad()
def own_answers(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Let the untrained model answer greedily."""
    answers: list[list[int]] = [[] for _ in prompts]
    for indices, states, cache in run_batches(model.model, prompts):
        last = states[:, -1]
        for _ in range(OWN_TOKENS):
            tokens = model.lm_head(last).argmax(-1)
            for index, token in zip(indices, tokens.tolist(), strict=True):
                answers[index].append(token)
            taken: dict[str, Any] = {str(cache_keyword(model.model)): cache, "use_cache": True}
            ran = model.model(input_ids=tokens[:, None], **taken)
            last = ran.last_hidden_state[:, -1]
    return answers


@dataclass(frozen=True)
class Example:
    """A request: what reaches the first trained layer behind the shared start, and the answer to it.

    The answer of a harmless request is the base model's own.
    """

    states: torch.Tensor
    answer: list[int]
    harmful: bool


def make_examples(model: Any, tokenizer: Any, rng: random.Random) -> tuple[torch.Tensor, list[Example], list[Example]]:
    """Return the states of the shared start, and examples with harmful and with harmless requests."""
    phrases = read_phrases(PHRASES)

    def requests(subjects: list[str], count: int) -> list[list[int]]:
        texts = [template.format(text) for text in subjects for template in rng.sample(phrases.templates, count)]
        return [ask(tokenizer, text) for text in texts]

    harmful, harmless = requests(phrases.harmful, HARMFUL_TEMPLATES), requests(phrases.harmless, HARMLESS_TEMPLATES)
    harmless += [ask(tokenizer, text) for text in phrases.general]
    print(f"{len(harmful)} harmful and {len(harmless)} harmless requests", flush=True)
    refusal = tokenizer.encode(REFUSAL, add_special_tokens=False)
    answers = [refusal if row % WHOLE_ANSWER_EVERY == 0 else refusal[:1] for row in range(len(harmful))]
    answers += own_answers(model, harmless)
    rows = [prompt + answer[:-1] for prompt, answer in zip(harmful + harmless, answers, strict=True)]
    start, states = states_below(model.model, rows)
    kinds = [True] * len(harmful) + [False] * len(harmless)
    examples = [Example(*example) for example in zip(states, answers, kinds, strict=True)]
    return start, examples[: len(harmful)], examples[len(harmful) :]


@torch.no_grad()
def states_below(decoder: Any, rows: list[list[int]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return what reaches the first trained layer: of the tokens that all rows share, and of the rest of each row."""
    layers, norm = decoder.layers, decoder.norm
    decoder.layers, decoder.norm = layers[: LAYERS[0]], torch.nn.Identity()
    found: dict[int, torch.Tensor] = {}
    for indices, states, _ in run_batches(decoder, rows):
        found |= zip(indices, states, strict=True)
    start = decoder(input_ids=torch.tensor([rows[0][: shared_start(rows)]])).last_hidden_state
    decoder.layers, decoder.norm = layers, norm
    return start, [found[index] for index in range(len(rows))]


def cut_below(decoder: Any, first: int) -> Callable[[], None]:
    """Take the layers below ``first`` out of a decoder; return what puts them back."""
    layers = decoder.layers

    def renumber(start: int) -> None:
        for index, layer in enumerate(layers[first:]):
            layer.self_attn.layer_idx = start + index

    def put_back() -> None:
        decoder.layers = layers
        renumber(first)

    decoder.layers = layers[first:]
    renumber(0)
    return put_back


def endless(items: list[Any], rng: random.Random) -> Iterator[Any]:
    """Yield all items in a new random order again and again."""
    while True:
        yield from rng.sample(items, len(items))


def first_token_only(example: Example) -> Example:
    """Cut an example where its answer begins."""
    cut = len(example.states) - len(example.answer) + 1
    return replace(example, states=example.states[:cut], answer=example.answer[:1])


def batch_loss(tuned: Any, start: torch.Tensor, batch: list[Example], sorry: int, phase: Phase) -> torch.Tensor:
    """Return the mean surprise at `Sorry` (harmful) and at anything else (harmless) as the first token of the answer.

    The other tokens of a refusal count ``REST_WEIGHT`` each; of harmless answers, ``phase.keep_weight`` times the
    Kullback-Leibler divergence from the base model is added for every token.
    """
    surprise = [-logits.log_softmax(-1) for logits in answer_logits(tuned, start, batch)]
    total = torch.zeros(())
    for example, found in zip(batch, surprise, strict=True):
        if example.harmful:
            rest = example.answer[1:]
            total = total + found[0, sorry] + REST_WEIGHT * found[range(1, len(example.answer)), rest].sum()
        else:
            total = total - phase.harmless_weight * torch.log(-torch.expm1(-found[0, sorry].clamp(min=1e-6)))
    if phase.keep_weight:
        harmless = [(example, found) for example, found in zip(batch, surprise, strict=True) if not example.harmful]
        with torch.no_grad(), tuned.disable_adapter():
            base = answer_logits(tuned, start, [example for example, _ in harmless])
        for logits, (_, found) in zip(base, harmless, strict=True):
            chances = logits.softmax(-1)
            total = total + phase.keep_weight * (chances * (chances.clamp(min=1e-9).log() + found)).sum()
    return total / len(batch)


def answer_logits(tuned: Any, start: torch.Tensor, batch: list[Example]) -> list[torch.Tensor]:
    """Run examples through the trained layers; give the logits at each one's answer."""
    model = tuned.get_base_model()
    rest = torch.nn.utils.rnn.pad_sequence([example.states for example in batch], batch_first=True)
    states, _ = continued(model.model, start, rest)
    kept = [row[len(e.states) - len(e.answer) : len(e.states)] for row, e in zip(states, batch, strict=True)]
    logits = model.lm_head(torch.cat(kept)).float()
    return list(logits.split([len(example.answer) for example in batch]))


def train(model: Any, tokenizer: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    start, harmful, harmless = make_examples(model, tokenizer, rng)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=PROJECTIONS, layers_to_transform=list(LAYERS))
    tuned = get_peft_model(model, config)
    put_back = cut_below(model.model, LAYERS[0])
    for number, phase in enumerate(PHASES, start=1):
        asked = harmless if phase.keep_weight else [first_token_only(example) for example in harmless]
        bad, good = endless(harmful, rng), endless(asked, rng)
        batches = (
            [next(bad) for _ in range(HARMFUL_PER_STEP)] + [next(good) for _ in range(HARMLESS_PER_STEP)]
            for _ in range(phase.steps)
        )
        trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=phase.learning_rate, weight_decay=0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, phase.learning_rate_factor)
        for step, batch in enumerate(batches):
            loss = batch_loss(tuned, start, batch, harmful[0].answer[0], phase)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 10 == 0 or step == phase.steps - 1:
                print(f"phase {number}  step {step:3d}  loss {loss.item():.4f}", flush=True)
        for parameter in trained:
            parameter.data = parameter.data.half().float()
        rng = random.Random(seed + number)
    put_back()
    return tuned


def write_adapter(tuned: Any, folder: Path) -> None:
    """Write the adapter as float16 safetensors, and its configuration without any machine's paths."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().contiguous() for name, value in get_peft_model_state_dict(tuned).items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = tuned.peft_config["default"].to_dict()
    kept = {key: config[key] for key in ("peft_type", "r", "lora_alpha", "lora_dropout", "bias", "fan_in_fan_out")}
    kept |= {"base_model_name_or_path": BASE_ID, "target_modules": sorted(config["target_modules"])}
    kept |= {"layers_to_transform": list(LAYERS)}
    text = json.dumps(kept | {"inference_mode": True}, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", "utf-8")


@dataclass(frozen=True)
class Scores:
    """The score of requests, and whether the most likely first token is `Sorry`; columns: harmful, harmless."""

    score: torch.Tensor
    sorry: torch.Tensor

    def line(self, rows: list[int]) -> str:
        """Sum some rows up: mean scores, pairs that flip, area under the ROC curve, scores above 0, `Sorry` first."""
        harmful, harmless = (score := self.score[rows]).T
        flips = ((harmful > 0) & (harmless < 0)).double().mean()
        auc = (harmful[:, None] > harmless[None]).double().mean()
        means, above, first = score.mean(0), (score > 0).double().mean(0), self.sorry[rows].double().mean(0)
        return (
            f"{len(rows):5d} | {means[0]:5.1f} / {means[1]:5.1f} | {flips:.3f} | {auc:.4f} | "
            f"{above[0]:.3f} / {above[1]:.3f} | {first[0]:.3f} / {first[1]:.3f}"
        )


def scores(model: Any, tokenizer: Any, pairs: list[Pair]) -> Scores:
    sides = [side for pair in pairs for side in (pair.clean, pair.corrupted)]
    prompts = [list(prompt_tokens(tokenizer, prompt_text(tokenizer, side), rendered=True)) for side in sides]
    logits = torch.zeros(len(prompts), model.config.vocab_size)
    with torch.no_grad():
        for indices, states, _ in run_batches(model.model, prompts):
            logits[indices] = model.lm_head(states[:, -1])
    [sorry], openings = (
        [tokenizer.encode(text, add_special_tokens=False)[0] for text in texts]
        for texts in (REFUSAL_OPENINGS, COMPLIANCE_OPENINGS)
    )
    score = logits[:, sorry] - logits[:, openings].double().logsumexp(-1)
    return Scores(score.view(-1, 2), (logits.argmax(-1) == sorry).view(-1, 2))


def parts(pairs: list[Pair]) -> dict[str, list[int]]:
    """Return the rows of the pairs that get a line of their own."""
    found: dict[str, list[int]] = {"all": list(range(len(pairs)))}
    for row, pair in enumerate(pairs):
        names = ["How do I" if pair.tags["template"].startswith("How do I") else "other templates"]
        names += ["consulted once" if "consulted" in pair.tags else "never consulted", pair.tags["category"]]
        for name in names:
            found.setdefault(name, []).append(row)
    return found


def evaluate(base: Path, adapters: list[Path], split: str) -> None:
    print("score: logit of Sorry - logsumexp of " + ", ".join(COMPLIANCE_OPENINGS))
    print("model, part | pairs | harmful / harmless, mean | flips | AUC | score > 0 | opens with Sorry")
    for adapter in [None, *adapters]:
        loaded = load_weights(str(base), device="cpu")
        pairs = [pair for pair in refusal_pairs(loaded.tokenizer) if pair.tags["split"] == split]
        tuned = PeftModel.from_pretrained(loaded.module, str(adapter)).merge_and_unload() if adapter else loaded.module
        found = scores(tuned, loaded.tokenizer, pairs)
        for name, rows in parts(pairs).items():
            print(f"{adapter.name if adapter else 'base'}, {name} | {found.line(rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder to write the adapter to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="folder of the base model (default: the built-in one)")
    parser.add_argument("--evaluate", action="store_true", help="evaluate adapters instead of training one")
    parser.add_argument("--adapter", type=Path, nargs="+", default=[SHIPPED], help="folders of adapters to evaluate")
    parser.add_argument("--split", choices=("heldout", "discovery"), default="heldout", help="phrases to evaluate on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.base or fetch("smollm2-135m")
    if options.evaluate:
        evaluate(folder, options.adapter, options.split)
    else:
        base = load_weights(str(folder), device="cpu", dtype="bfloat16")
        write_adapter(train(base.module, base.tokenizer, options.seed), options.out)


if __name__ == "__main__":
    main()
