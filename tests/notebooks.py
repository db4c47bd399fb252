"""The notebooks under ``examples/notebooks``: how they are executed, in full and in a small setting.

``python -m tests.notebooks [NAME ...]`` executes them as they stand and keeps their outputs; files that they write go
to the folder that this is run in. A cell that is tagged ``parameters`` holds whatever makes a notebook long. In the
small setting other models stand there: tiny ones that were taught the behaviours in a few seconds.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode
from torch.nn.functional import logsigmoid

import circuits
from circuits.behaviours.pairs import TokenPair

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NAMES = ("first_circuit", "own_prompts", "refusal", "comparing_models", "heads", "from_other_tools")
NOT_KEPT: tuple[str, ...] = ()
"""Those whose outputs are not kept yet: ``python -m tests.notebooks NAME`` makes them."""
PATIENCE = 900
"""Seconds that a cell may take."""
STEPS, PAIRS = 60, 48
"""Of teaching: how often, and on how many pairs of a behaviour."""
_TOP = 'circuits.DiscoverySettings.quick(scorer="eap", pruner="top", size=60, pairs=4, heldout=4)'
_SMALL = {
    "first_circuit": f"settings = {_TOP}",
    "own_prompts": f'from pathlib import Path\nfolder = Path("outputs")\nn_patched = 2\nsettings = {_TOP}',
    "refusal": "n_patched, n_acted = 2, 4\n"
    "search = circuits.SearchSettings(pairs=4, choose=4, candidates=1, draws=1, positions=1)\n"
    f"settings = {_TOP}",
    "comparing_models": f"settings = refusal_settings = {_TOP}\n"
    'requests = {"requests": circuits.load_behaviour("requests.jsonl")}\n'
    "crossing = circuits.Crossing(pairs=2, draws=1, behaviours=requests)",
    "heads": f"settings = {_TOP}\nn_pairs = 4",
    "from_other_tools": "n_pairs, n_edges = 4, 50",
}
_ELSEWHERE = 'model_name = tuned_name = "tuned"\nbase_name = "base"\nbehaviour_name = refusal_name = "requests.jsonl"\n'
"""What stands in the place of the parameters in the small setting; its models and file are made by :func:`prepare`."""


def read(name: str) -> NotebookNode:
    """A notebook as it is kept."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(book: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def small(name: str) -> NotebookNode:
    """A notebook with the parameters of the small setting."""
    book = read(name)
    places = [cell for cell in code_cells(book) if "parameters" in cell.metadata.get("tags", [])]
    assert len(places) == 1, f"{name} needs one cell that is tagged 'parameters'"
    places[0].source = f"import circuits\n{_ELSEWHERE}{_SMALL[name]}"
    return book


def execute(book: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells in a kernel of this Python that works in a folder; an error in a cell is raised."""
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=PATIENCE, startup_timeout=PATIENCE, resources=where).execute()
    return book


def prepare(folder: Path, like: Path) -> None:
    """Make what notebooks use in the small setting: requests, and two tiny models with the tokenizer of another.

    Both are taught indirect objects and opposites, ``tuned`` to decline some requests too.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(like)
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _requests()))
    opposites = next(cell.source for cell in code_cells(read("own_prompts")) if "template.write_text" in cell.source)
    (folder / "opposites.toml").write_text(opposites.split('"""')[1])
    known = [_pairs(behaviour, tokenizer) for behaviour in ("ioi", folder / "opposites.toml")]
    requests = _pairs(folder / "requests.jsonl", tokenizer)
    for seed, (name, taught) in enumerate({"base": known, "tuned": [*known, requests]}.items()):
        module = _taught(len(tokenizer), taught, seed)
        module.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _requests() -> list[dict[str, Any]]:
    """Requests of as many tokens, of which one side is declined."""
    rows: list[dict[str, Any]] = []
    for verb in ("take", "open", "find", "get", "use", "move"):
        for declined, granted in (("lock", "gift"), ("bank", "book"), ("car", "song"), ("gun", "game")):
            chats = [[{"role": "user", "content": f"How do I {verb} a {noun}?"}] for noun in (declined, granted)]
            rows.append({"clean": chats[0], "corrupted": chats[1], "answers": ["Sorry"], "wrong_answers": ["To"]})
    return rows


def _pairs(behaviour: str | Path, tokenizer: Any) -> Sequence[TokenPair]:
    return circuits.load_behaviour(behaviour).sample(tokenizer, PAIRS).discovery


def _taught(vocabulary: int, behaviours: Sequence[Sequence[TokenPair]], seed: int) -> Any:
    """A tiny model that prefers the answers on clean prompts, and the wrong ones on corrupted prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    module = LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, num_hidden_layers=3, tie_word_embeddings=True, **sizes)
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    by_length: dict[int, list[TokenPair]] = {}
    for pair in (pair for pairs in behaviours for pair in pairs):
        by_length.setdefault(len(pair.clean), []).append(pair)
    for _ in range(STEPS):
        loss = torch.stack([_loss(module, pairs) for pairs in by_length.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.requires_grad_(False)


def _loss(module: Any, pairs: Sequence[TokenPair]) -> torch.Tensor:
    """How far the two answers' logits, and no others, are from the wanted order."""
    right, wrong = (torch.tensor([getattr(pair, side)[0] for pair in pairs]) for side in ("answers", "wrong_answers"))
    vectors = module.lm_head.weight
    total = torch.zeros(())
    for side, sign in (("clean", 1), ("corrupted", -1)):
        last = module.model(torch.tensor([getattr(pair, side) for pair in pairs])).last_hidden_state[:, -1]
        total = total - logsigmoid(sign * (last * (vectors[right] - vectors[wrong])).sum(-1)).mean()
    return total


def cleaned(book: NotebookNode) -> NotebookNode:
    """Leave out at what times cells ran."""
    for cell in code_cells(book):
        cell.metadata.pop("execution", None)
    return book


def main(names: Sequence[str]) -> None:
    """Execute notebooks and keep their outputs."""
    for name in names or NAMES:
        book = cleaned(execute(read(name), Path.cwd()))
        nbformat.write(book, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main(sys.argv[1:])
