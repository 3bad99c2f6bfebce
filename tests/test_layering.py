"""A file imports only from lower layers; what is heavy is imported only where it is used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfspec

ROOT = Path(selfspec.__file__).parent
LAYERS = [
    {"checks"},
    {
        "causal_lm",
        "cross_entropy",
        "files",
        "interfaces",
        "kmers",
        "noise",
        "ops",
        "progress",
        "schedules",
        "weights",
    },
    {"information", "lengths", "orders", "verification"},
    {"selection"},
    {"data", "metrics", "nn"},
    {"model", "prompts"},
    {"description", "inputs"},
    {"checkpoint", "likelihood", "losses", "sampling"},
    {"calibration", "engine", "train"},
    {"generation", "measuring"},
    {"hub"},
    {"arena", "recipes", "serve"},
    {"api"},
    {"public"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
LAYER = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}
ALWAYS = {"numpy", "safetensors", "torch", "tqdm"}
LAZY = {"datasets", "fastapi", "huggingface_hub", "matplotlib", "scipy", "tensorboard",
        "tokenizers", "transformers", "tyro"}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def unit_of(module: str) -> str:
    """The file or package directly under `selfspec`; the root for one of its names."""
    name = [*module.split("."), "__init__"][1]
    return name if name in LAYER else "__init__"


def imported(node: ast.AST, package: list[str]) -> list[str]:
    """Dotted names that an import statement in a module of `package` reaches."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package[: len(package) + 1 - node.level] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{module}.{a.name}" for a in node.names] if module == "selfspec" else [module]


def breaches(source: str, path: Path) -> list[str]:
    """Imports, function-local ones too, of what does not lie below."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = ["selfspec", *parts[:-1]]
    own, found = parts[0], []
    for node in ast.walk(ast.parse(source)):
        for name in imported(node, package):
            unit = unit_of(name)
            if name.split(".")[0] == "selfspec" and unit != own and LAYER[unit] >= LAYER[own]:
                found.append(f"{own} imports {name}")
    return found


def runs_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a module that run when it is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from runs_at_import(child)


def third_party(nodes: Iterator[ast.AST]) -> set[str]:
    names = {name.split(".")[0] for node in nodes for name in imported(node, ["selfspec"])}
    return names - {"selfspec"} - sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_from_lower_layers_only(path: Path):
    assert path.relative_to(ROOT).with_suffix("").parts[0] in LAYER
    assert breaches(path.read_text(), path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_heavy_is_imported_in_functions(path: Path):
    tree = ast.parse(path.read_text())
    theirs = {"tyro"} if path.is_relative_to(ROOT / "cli") else set()
    if path == ROOT / "hub" / "pretrained.py":  # subclasses of the library, imported by nobody here
        theirs = {"transformers"}
    assert third_party(runs_at_import(tree)) <= ALWAYS | theirs
    assert third_party(ast.walk(tree)) <= ALWAYS | LAZY


@pytest.mark.parametrize(
    "source",
    ["import selfspec.api", "from selfspec.train import Trainer", "from selfspec import sampling",
     "from selfspec import load", "def f():\n    from selfspec import likelihood",
     "from .. import losses", "from ..sampling import base", "import selfspec"],
)  # fmt: skip
def test_a_breach_is_seen(source: str):
    assert breaches(source, ROOT / "nn" / "head.py")
    assert not breaches(
        "from selfspec.ops import draw\nfrom . import attention", ROOT / "nn/head.py"
    )


@pytest.mark.parametrize("prefix", ["", "class A:\n    ", "if True:\n    ", "with a:\n    "])
def test_a_heavy_import_is_seen(prefix: str):
    tree = ast.parse(f"{prefix}import matplotlib.pyplot as plt")
    assert third_party(runs_at_import(tree)) == {"matplotlib"}
    lazy = ast.parse("def f():\n    import matplotlib\nif TYPE_CHECKING:\n    import transformers")
    assert third_party(runs_at_import(lazy)) == set()


def test_the_package_starts_without_what_is_heavy():
    code = f"import selfspec.public, sys; print({LAZY!r} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
