"""Pictures with and without an installed Graphviz."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from circuits.drawing.dot import circuit_dot
from circuits.drawing.render import PNG_DPI, ImageFormat, image, render
from circuits.errors import OutputError, RenderError, UnknownNameError
from tests.example_circuits import random_circuit

DOT = "digraph { a -> b }\n"


def fake_dot(folder: Path, script: str) -> None:
    program = folder / "dot"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)


def test_pictures_are_drawn_without_a_dot_program_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    dot = circuit_dot(random_circuit(20))
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    for suffix, start in starts.items():
        render(dot, tmp_path / f"x.{suffix}")
        assert (tmp_path / f"x.{suffix}").read_bytes().startswith(start)
    assert b"a0.h" in (tmp_path / "x.svg").read_bytes() or b"m" in (tmp_path / "x.svg").read_bytes()


def test_png_pictures_have_a_resolution_fit_for_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    svg = image(DOT, ImageFormat.SVG).decode()
    points = float(svg.split('width="')[1].split("pt")[0])
    width = int.from_bytes(image(DOT, ImageFormat.PNG)[16:20], "big")
    assert width == pytest.approx(points * PNG_DPI / 72, rel=0.05)


def test_an_installed_dot_program_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dot(tmp_path, 'cat > /dev/null; printf "drawn by $*"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert image(DOT, ImageFormat.SVG).startswith(b"drawn by -Kdot -Tsvg")


def test_a_broken_dot_program_is_replaced_by_the_bundled_graphviz(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_dot(tmp_path, "cat > /dev/null; exit 3")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert image(DOT, ImageFormat.SVG).startswith(b"<?xml")


def test_without_any_graphviz_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(RenderError, match=r"pip install pygraphviz.*\.dot or \.mmd"):
        image(DOT, ImageFormat.SVG)


def test_text_that_is_not_dot_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RenderError, match="could not draw"):
        image("this is not a graph {", ImageFormat.SVG)


def test_an_unknown_kind_of_picture_is_refused_with_the_closest_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no file format '\.pgn'.*Closest: '\.png'"):
        render(DOT, tmp_path / "x.pgn")


def test_a_place_that_cannot_be_written_to_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        render(DOT, tmp_path / "absent" / "x.svg")


def test_warnings_of_the_bundled_graphviz_never_reach_the_user(tmp_path: Path) -> None:
    """Fontconfig writes past Python; here it warns of a configuration that holds an unknown element."""
    fonts = tmp_path / "fonts.conf"
    fonts.write_text('<?xml version="1.0"?><fontconfig><unknown-element/></fontconfig>')
    code = (
        "import sys, os, logging; logging.basicConfig(filename=sys.argv[1], level=logging.INFO)\n"
        "from circuits.drawing.render import _bundled; assert _bundled('digraph{a->b}', 'png')\n"
        "os.write(2, b'still there')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")],
        env={**os.environ, "FONTCONFIG_FILE": str(fonts)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "still there"
    assert "unknown element" in (tmp_path / "log").read_text()
