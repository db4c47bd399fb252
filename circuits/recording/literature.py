"""The papers of the methods, behaviours and models that are built in, and the package itself, as BibTeX."""

from dataclasses import dataclass

from circuits.vocabulary import ScorerName

TITLE = "circuits: path patching for transformer language models"
"""As in ``CITATION.cff``."""


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv; ``said`` is how a text refers to it."""

    key: str
    said: str
    authors: str
    title: str
    year: int
    arxiv: str

    def bibtex(self) -> str:
        """Return the entry of a ``.bib`` file."""
        return (
            f"@misc{{{self.key},\n  author = {{{self.authors}}},\n  title = {{{{{self.title}}}}},\n"
            f"  year = {{{self.year}}},\n  eprint = {{{self.arxiv}}},\n  archivePrefix = {{arXiv}},\n}}"
        )


PATH_PATCHING = Paper(
    "goldowskydill2023path",
    "Goldowsky-Dill et al., 2023",
    "Goldowsky-Dill, Nicholas and MacLeod, Chris and Sato, Lucas and Arora, Aryaman",
    "Localizing Model Behavior with Path Patching",
    2023,
    "2304.05969",
)
IOI = Paper(
    "wang2022ioi",
    "Wang et al., 2022",
    "Wang, Kevin and Variengien, Alexandre and Conmy, Arthur and Shlegeris, Buck and Steinhardt, Jacob",
    "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small",
    2022,
    "2211.00593",
)
EAP = Paper(
    "syed2023attribution",
    "Syed et al., 2023",
    "Syed, Aaquib and Rager, Can and Conmy, Arthur",
    "Attribution Patching Outperforms Automated Circuit Discovery",
    2023,
    "2310.10348",
)
EAP_IG = Paper(
    "hanna2024faith",
    "Hanna et al., 2024",
    "Hanna, Michael and Pezzelle, Sandro and Belinkov, Yonatan",
    "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms",
    2024,
    "2403.17806",
)
GREATER_THAN = Paper(
    "hanna2023greater",
    "Hanna et al., 2023",
    "Hanna, Michael and Liu, Ollie and Variengien, Alexandre",
    "How does GPT-2 compute greater-than?: Interpreting mathematical abilities in a pre-trained language model",
    2023,
    "2305.00586",
)
INDUCTION = Paper(
    "olsson2022induction",
    "Olsson et al., 2022",
    "Olsson, Catherine and others",
    "In-context Learning and Induction Heads",
    2022,
    "2209.11895",
)
TRACING = Paper(
    "meng2022locating",
    "Meng et al., 2022",
    "Meng, Kevin and Bau, David and Andonian, Alex and Belinkov, Yonatan",
    "Locating and Editing Factual Associations in GPT",
    2022,
    "2202.05262",
)
PATCHING = Paper(
    "zhang2023patching",
    "Zhang and Nanda, 2023",
    "Zhang, Fred and Nanda, Neel",
    "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods",
    2023,
    "2309.16042",
)
REFUSAL = Paper(
    "arditi2024refusal",
    "Arditi et al., 2024",
    "Arditi, Andy and Obeso, Oscar and Syed, Aaquib and Paleka, Daniel and Panickssery, Nina and Gurnee, Wes and "
    "Nanda, Neel",
    "Refusal in Language Models Is Mediated by a Single Direction",
    2024,
    "2406.11717",
)
NNSIGHT = Paper(
    "fiottokaufman2024nnsight",
    "Fiotto-Kaufman et al., 2024",
    "Fiotto-Kaufman, Jaden and others",
    "NNsight and NDIF: Democratizing Access to Open-Weight Foundation Model Internals",
    2024,
    "2407.14561",
)
SMOLLM2 = Paper(
    "benallal2025smollm2",
    "Ben Allal et al., 2025",
    "Ben Allal, Loubna and others",
    "SmolLM2: When Smol Goes Big -- Data-Centric Training of a Small Language Model",
    2025,
    "2502.02737",
)
QWEN_CODER = Paper(
    "hui2024qwen", "Hui et al., 2024", "Hui, Binyuan and others", "Qwen2.5-Coder Technical Report", 2024, "2409.12186"
)

RELP = Paper(
    "jafari2025relp",
    "Rezaei Jafari et al., 2025",
    "Rezaei Jafari, Farnoush and Eberle, Oliver and Khakzar, Ashkan and Nanda, Neel",
    "RelP: Faithful and Efficient Circuit Discovery in Language Models via Relevance Patching",
    2025,
    "2508.21258",
)
GIM = Paper(
    "edin2025gim",
    "Edin et al., 2025",
    "Edin, Joakim and others",
    "GIM: Improved Interpretability for Large Language Models",
    2025,
    "2505.17630",
)
ATP_STAR = Paper(
    "kramar2024atp",
    "Kramár et al., 2024",
    "Kramár, János and Lieberum, Tom and Shah, Rohin and Nanda, Neel",
    "AtP*: An efficient and scalable method for localizing LLM behaviour to components",
    2024,
    "2403.00745",
)
EDGE_PRUNING = Paper(
    "bhaskar2024finding",
    "Bhaskar et al., 2024",
    "Bhaskar, Adithya and Wettig, Alexander and Friedman, Dan and Chen, Danqi",
    "Finding Transformer Circuits with Edge Pruning",
    2024,
    "2406.16778",
)
IFR = Paper(
    "ferrando2024information",
    "Ferrando and Voita, 2024",
    "Ferrando, Javier and Voita, Elena",
    "Information Flow Routes: Automatically Interpreting Language Models at Scale",
    2024,
    "2403.00824",
)

SCORERS: dict[str, Paper] = {
    ScorerName.RELP: RELP,
    ScorerName.GIM: GIM,
    ScorerName.ATP_STAR: ATP_STAR,
    ScorerName.EAP_IG_ACTIVATIONS: EAP_IG,
    ScorerName.EAP_IG_ACTIVATIONS_PUBLISHED: EAP_IG,
    ScorerName.LEARNED_MASKS: EDGE_PRUNING,
    ScorerName.IFR: IFR,
    ScorerName.EAP_IG: EAP_IG,
    ScorerName.CLEAN_CORRUPTED: EAP_IG,
    ScorerName.EAP: EAP,
    ScorerName.EXACT: PATH_PATCHING,
}
BEHAVIOURS: dict[str, Paper] = {"ioi": IOI, "greater-than": GREATER_THAN, "induction": INDUCTION}
MODELS: dict[str, Paper] = {"smollm2": SMOLLM2, "qwen2.5-coder": QWEN_CODER}
"""By what a model's name holds."""
COMMANDS: dict[str, tuple[str, tuple[Paper, ...]]] = {
    "discover": ("searched for a circuit", (PATH_PATCHING,)),
    "score": ("scored edges", (PATH_PATCHING,)),
    "patch": ("patched activations", (TRACING, PATCHING)),
    "path": ("patched paths", (PATH_PATCHING,)),
    "evaluate": ("evaluated a circuit on held-out prompts", (PATH_PATCHING,)),
    "compare": ("compared circuits", (PATH_PATCHING,)),
    "ablate": ("ablated a circuit", ()),
    "heads": ("measured what the attention heads of a circuit do", (IOI, INDUCTION)),
    "direction": ("searched for a direction of the residual stream by difference of means", (REFUSAL,)),
}
"""What each command does in the words of a methods section, and whose method it is."""


def software_bibtex(version: str) -> str:
    """Return the entry of this package."""
    return (
        f"@software{{circuits,\n  author = {{{{The circuits authors}}}},\n  title = {{{{{TITLE}}}}},\n"
        f"  version = {{{version}}},\n}}"
    )
