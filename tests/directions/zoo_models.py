"""Models of the zoo and their anatomy, made once for all tests of where circuits lead to."""

from functools import cache

from circuits.model import Model, load_model
from tests.reference.anatomy import Anatomy, anatomy_of
from tests.tiny import tiny_tokenizer
from tests.zoo import ZOO


@cache
def model(family: str) -> Model:
    """Return a model of a family."""
    return load_model(ZOO[family](), tokenizer=tiny_tokenizer(), name=family)


@cache
def anatomy(family: str) -> Anatomy:
    """Return where the reference finds the parts of that model."""
    return anatomy_of(model(family).tracer.anatomy.module)
