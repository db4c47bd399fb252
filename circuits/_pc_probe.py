from transformers import PreTrainedTokenizerBase
from circuits.behaviours import BUILT_IN
def f(t: PreTrainedTokenizerBase) -> None:
    BUILT_IN["ioi"].prompts(t)
