"""The structure stays within its bounds; each measure is shown to notice what it is for."""

from tests.house import DOORS, LONG, NUMBERED, ROOT, House

EVERY = ("now", "late", "types")
HOUSE = House.at(ROOT)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert HOUSE.circles(*EVERY, doors=DOORS) == []


def test_a_circuit_reaches_few_modules() -> None:
    assert len(HOUSE.reached("circuits.circuit", *EVERY, doors=DOORS)) <= 11


def test_no_file_name_occurs_twice() -> None:
    assert HOUSE.file_names() == {}


def test_no_class_name_occurs_twice() -> None:
    assert HOUSE.class_names() == {}


def test_few_functions_are_long() -> None:
    assert len([name for lines, name in HOUSE.functions() if lines > LONG]) == 0


def test_every_declared_door_is_one() -> None:
    assert set(HOUSE.arrows("late").edges) >= DOORS


def test_places_of_senders_and_receivers_and_the_sign_of_metrics_are_computed_in_one_module_each() -> None:
    """Sizes of memory need how many receivers a layer has, and no place of one."""
    assert HOUSE.readers(*NUMBERED) == ["circuits.graph", "circuits.memory.needs", "circuits.numbering"]
    assert HOUSE.readers("lower_is_better") == ["circuits.vocabulary"]


def test_examples_and_guides_use_public_names_only() -> None:
    """But the scripts behind a model that ships, and behind the figures of directions, which are no examples of use."""
    behind = ("train_refusal_adapter", "refusal_direction", "refusal_paths", "refusal_writers")
    inside = {f"examples/{name}.py" for name in behind}
    assert set(HOUSE.unlisted()) <= inside


PLANTED = House(
    {
        "circuits": "",
        "circuits.one": "def f():\n    from circuits.box.two import g",
        "circuits.box": '"""A box."""\nx = z.y',
        "circuits.box.two": "import numpy\nif TYPE_CHECKING:\n    from circuits.three import Thing\nclass Thing: ...",
        "circuits.three": 'from circuits import one\nclass Thing:\n    """Give a thing."""\n    x = 1',
        "circuits.box.three": "def f():\n    'Say it.'\n" + "    x = 1\n" * 61,
    },
    {"examples/a.py": "import circuits\nfrom circuits.box.two import g\nimport circuits.three as three"},
)


def test_circles_are_noticed_by_the_kind_of_import_that_closes_them() -> None:
    assert PLANTED.circles("now") == []
    assert PLANTED.circles("now", "late") == []
    assert PLANTED.circles(*EVERY) == [["circuits.box.two", "circuits.one", "circuits.three"]]
    assert PLANTED.circles(*EVERY, doors=[("circuits.one", "circuits.box.two")]) == []


def test_what_a_module_reaches_is_counted_through_others() -> None:
    assert PLANTED.reached("circuits.box.two", *EVERY) == ["circuits.one", "circuits.three"]
    assert PLANTED.reached("circuits.box.two", "now") == []


def test_names_that_occur_twice_long_functions_words_and_unlisted_imports_are_noticed() -> None:
    assert PLANTED.file_names() == {"three": ["circuits.three", "circuits.box.three"]}
    assert PLANTED.class_names() == {"Thing": ["circuits.box.two", "circuits.three"]}
    assert PLANTED.functions() == [(62, "circuits.box.three.f"), (2, "circuits.one.f")]
    assert PLANTED.folders() == {"circuits": 2, "circuits.box": 2}
    assert (PLANTED.docstrings("Give"), PLANTED.docstrings("Say")) == (1, 1)
    assert (PLANTED.readers("x"), PLANTED.readers("y")) == ([], ["circuits.box"])
    assert PLANTED.unlisted() == {"examples/a.py": ["circuits.box.two", "circuits.three"]}
