"""The README and the guides: everything they name exists, and every figure in them has a script that makes it."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import circuits
from circuits.builder import build_graph
from circuits.cli.app import app
from circuits.errors import UnknownNameError
from circuits.graph import ModelShape
from circuits.guides import topics
from circuits.heads.labels import Thresholds
from circuits.openings import KEPT, PAIRS
from circuits.reference import names_in_brief
from circuits.statistics import FEW
from examples.guides.figures import markers, placed

ROOT = Path(__file__).parent.parent
GUIDES = ROOT / "examples" / "guides"
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(GUIDES.glob("*.md")))
}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
SCRIPT = re.compile(r"(?:examples/)?(?:guides/|benchmarks/)?[\w]+\.py|tests\.\w+|examples\.guides\.\w+")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def command_lines(text: str) -> Iterator[str]:
    """Every line of this package in the shell blocks of a text, and what it names in the running text."""
    shell = "\n".join(blocks(text, "bash")).replace(" && ", "\n")
    inline = re.findall(r"`(circuits [a-z][^`]*)`", without_blocks(text))
    yield from (line for line in [*shell.splitlines(), *inline] if line.startswith("circuits "))


def complaint(line: str) -> str:
    """Say what a command line names that does not exist; nothing where all of it does."""
    name, *words = shlex.split(line.removeprefix("circuits ").replace("…", ""), comments=True)
    if name not in COMMANDS:
        return f"no command {name}"
    known = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if re.fullmatch("--?[a-z].*", word) and word not in known]
    return f"{name} has no {unknown}" if unknown else ""


# ------------------------------------------------------------------------------------------------------------ reading


def test_every_guide_is_read_by_its_topic_and_begins_with_a_heading() -> None:
    files = {path.stem for path in GUIDES.glob("*.md")} | {"changelog", "contributing"}
    assert set(topics()) == files
    for topic, heading in topics().items():
        assert circuits.guide(topic).startswith(f"# {heading}\n")
        assert "<!--" not in circuits.guide(topic)


def test_an_unknown_topic_is_answered_with_the_closest_and_all_others() -> None:
    with pytest.raises(UnknownNameError, match=r"no guide 'evidense'. Closest: 'evidence'. Known: acting, .*costs"):
        circuits.guide("evidense")


def test_the_command_prints_a_guide_and_lists_topics() -> None:
    run = CliRunner().invoke
    assert run(app, ["guide", "heads"]).stdout == circuits.guide("heads") + "\n"
    assert "What the heads of a circuit do" in run(app, ["guide"]).stdout
    assert json.loads(run(app, ["guide", "--json", "costs"]).stdout) == {
        "topic": "costs",
        "text": circuits.guide("costs"),
    }
    assert run(app, ["guide", "heds"]).exit_code == 2


def test_the_reference_has_an_entry_for_every_public_name() -> None:
    text = circuits.guide("reference")
    entries = re.findall(r"^- `(\w+)", text.partition("## Functions")[2], re.MULTILINE)
    assert sorted(entries) == circuits.__all__
    assert "- `read_circuit(path)`: Return the circuit in a file of this tool, of EAP-IG, MIB or auto-circuit" in text
    assert "`discover(model, behaviour, settings=None, *, folder=None, resume=False" in text
    assert "  - `.strongest(count)`: " in text


def test_the_reference_follows_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def added(one: int, *, two: str = "b") -> None:
        """Return what was added since. And more."""

    monkeypatch.setattr(circuits, "__all__", ["added"])
    monkeypatch.setattr(circuits, "added", added, raising=False)
    assert "- `added(one, *, two='b')`: Return what was added since." in names_in_brief(circuits).splitlines()


def test_guides_are_packed_into_the_wheel_beside_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed: dict[str, str] = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    of_guides = {name: f"circuits/_guides/{Path(name).name.lower()}" for name in TEXTS if name != "README.md"}
    assert packed == of_guides


def test_an_installed_package_reads_the_guides_beside_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.md").write_text("# Mine\n\n<!-- x: begin -->\n\nfigures\n\n<!-- x: end -->\n\nend\n")
    monkeypatch.setattr("circuits.guides._INSTALLED", tmp_path)
    assert topics() == {"mine": "Mine"}
    assert circuits.guide("mine") == "# Mine\n\nfigures\n\nend\n"


# -------------------------------------------------------------------------------------------------- what texts promise


def test_the_readme_is_read_in_a_few_screens() -> None:
    assert len(TEXTS["README.md"].encode()) <= 12_000


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_options_in_a_text_exist(name: str) -> None:
    assert [(line, wrong) for line in command_lines(TEXTS[name]) if (wrong := complaint(line))] == []


def test_a_command_or_option_that_does_not_exist_is_noticed() -> None:
    assert complaint("circuits disco ioi") == "no command disco"
    assert complaint("circuits draw c.json --size 3 -o x.svg") == "draw has no ['--size']"
    assert complaint("circuits compare A.json B.json --random 0  # --none") == ""
    assert list(command_lines("```bash\npip install . && circuits check\n```\nSee `circuits models`.")) == [
        "circuits check",
        "circuits models",
    ]


def test_the_readme_lists_every_command_once() -> None:
    listed = re.findall(r"^\| `circuits (\w+)", TEXTS["README.md"], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("name", TEXTS)
def test_names_in_python_blocks_are_public(name: str) -> None:
    for block in blocks(TEXTS[name], "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "circuits":
                assert node.attr in circuits.__all__
            if isinstance(node, ast.ImportFrom) and node.module == "circuits":
                assert {alias.name for alias in node.names} <= set(circuits.__all__)


@pytest.mark.parametrize("name", TEXTS)
def test_names_of_the_package_in_running_text_are_public(name: str) -> None:
    named = re.findall(r"`circuits\.([a-zA-Z_]+)", without_blocks(TEXTS[name]))
    assert {each for each in named if not hasattr(circuits, each)} <= {"scoring", "behaviours"}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_headings(name: str) -> None:
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", without_blocks(TEXTS[name])):
        if target.startswith("http"):
            continue
        place, _, anchor = target.partition("#")
        file = (ROOT / name).parent / place if place else ROOT / name
        assert file.exists(), f"{text}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


def test_guides_that_messages_and_texts_name_exist() -> None:
    sources = {path.as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "circuits").rglob("*.py")}
    named = {
        topic for text in (*TEXTS.values(), *sources.values()) for topic in re.findall(r"circuits guide ([a-z]+)", text)
    }
    assert {"models", "evidence", "costs", "prompts"} <= named <= set(topics())


def test_the_python_of_the_readme_is_ten_lines_and_is_typed() -> None:
    block = next(iter(blocks(TEXTS["README.md"], "python")))
    assert len([line for line in block.splitlines() if line.strip()]) == 10
    used = {node.attr for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Attribute)}
    assert {"discover", "edge_effects", "circuits", "draw"} <= used


# ------------------------------------------------------------------------------------------------------------- figures


def figures(text: str) -> dict[str, str]:
    """What stands between markers, by their names."""
    found = re.findall(r"<!-- (\w+): begin -->(.*?)<!-- \1: end -->", text, re.DOTALL)
    return {name: body.strip() for name, body in found}


@pytest.mark.parametrize("name", TEXTS)
def test_figures_stand_between_markers_and_are_there(name: str) -> None:
    text = TEXTS[name]
    assert len(figures(text)) == text.count(": begin -->") == text.count(": end -->")
    assert [block for block, body in figures(text).items() if "follow" in body or not re.search(r"\d", body)] == []


@pytest.mark.parametrize("name", TEXTS)
def test_a_section_with_measured_figures_names_the_script_that_makes_them(name: str) -> None:
    for section in re.split(r"(?m)^#+ .*$", TEXTS[name]):
        if not figures(section):
            continue
        scripts = [Path(each).name.removesuffix(".py") for each in SCRIPT.findall(section)]
        assert scripts, section[:200]
        places = (ROOT / "examples", GUIDES, ROOT / "examples" / "benchmarks", ROOT / "tests")
        for script in scripts:
            stem = script.rpartition(".")[2]
            assert any((place / f"{stem}.py").is_file() for place in places), script


@pytest.mark.parametrize("script", sorted(path.name for path in GUIDES.glob("*.py")))
def test_a_script_publishes_into_markers_that_are_there(script: str) -> None:
    for file, name in re.findall(r'publish\(\s*"([\w.]+)",\s*"(\w+)"', (GUIDES / script).read_text("utf-8")):
        text = TEXTS[file if file == "README.md" else f"examples/guides/{file}"]
        assert name in figures(text), f"{script}: {file}, {name}"
        assert script in text or script.removesuffix(".py") in text


def test_writing_figures_replaces_them_and_nothing_else() -> None:
    begin, end = markers("mine")
    text = f"before\n{begin}\n\nold\n\n{end}\nafter\n"
    assert placed(text, "mine", "new\n") == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    with pytest.raises(SystemExit, match="no lines '<!-- other: begin -->'"):
        placed(text, "other", "new")


def test_figures_that_take_no_model_are_those_of_the_code() -> None:
    smollm2 = build_graph(ModelShape(n_layers=30, n_heads=9, n_kv_heads=3, d_model=576, d_head=64))
    assert f"SmolLM2-135M has {smollm2.n_edges:,} edges" in TEXTS["examples/guides/method.md"]
    thresholds = Thresholds()
    reached = f"({100 * thresholds.attention:.0f} % of the attention, {100 * thresholds.copying:.0f} % of the tokens"
    assert reached in TEXTS["examples/guides/heads.md"]
    refusal = TEXTS["examples/guides/refusal.md"]
    assert f"over {PAIRS} discovery pairs" in refusal
    assert f"fewer than {KEPT} of the {PAIRS} pairs" in refusal
    phrases = phrase_counts()
    assert f"{phrases['discovery']} to find circuits with and {phrases['heldout']} held out" in refusal
    assert f"Of fewer than {FEW} pairs they are too narrow" in TEXTS["examples/guides/evidence.md"]
    assert f"Fewer than {FEW} prompts give intervals that are too narrow" in TEXTS["README.md"]


def phrase_counts() -> dict[str, int]:
    rows = next((ROOT / "circuits").rglob("refusal.tsv")).read_text("utf-8").splitlines()
    splits = [row.partition("\t")[0] for row in rows if row and not row.startswith(("#", "template"))]
    return {"discovery": splits.count("discovery"), "heldout": len(splits) - splits.count("discovery")}


@pytest.mark.real
@pytest.mark.slow
def test_the_script_of_the_first_circuit_prints_the_tables_of_the_guides(tmp_path: Path, smol: Path) -> None:
    command = [sys.executable, str(GUIDES / "ioi.py"), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    for file, name in (("evidence.md", "ioi"), ("evidence.md", "curve"), ("heads.md", "heads")):
        heading = figures(TEXTS[f"examples/guides/{file}"])[name].partition("\n")[0]
        assert f"{file}, {name}:\n\n{heading}\n" in done.stdout
