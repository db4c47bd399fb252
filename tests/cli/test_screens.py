"""What a terminal shows while a command works: lines that fit it, and a share that never goes back."""

from pathlib import Path

from tests.cli.conftest import discover_options
from tests.screens import shown


def test_a_whole_discovery_fits_the_terminal(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    words = ["discover", str(prompts), *discover_options(tiny_folder, tmp_path / "found")]
    lines, code = shown(words, 80)
    assert code == 0, "\n".join(line.text for line in lines)
    shares = [line.share for line in lines if line.share is not None and "stage" in line.text]
    assert shares == sorted(shares)
    assert len(shares) > 0
    assert max(shares) < 100
    wide = [line.text for line in lines if len(line.text) > 80 and str(tmp_path) not in line.text]
    assert not wide
    assert any("faithfulness" in line.text for line in lines)
