"""The import order of DESIGN.md: every file imports only files above it, and the package never imports an extra."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest

import spannerlm

SOURCE = Path(spannerlm.__file__).parent

ORDER = [
    "errors",
    "dialogue",
    "records",
    "progress",
    "wording",
    "settings",
    "files",
    "http",
    "linalg",
    "oracle",
    "feature_parts",
    "backends",
    "backends.loading",
    "backends.encoder",
    "embedding_client",
    "embedding",
    "features",
    "rewards",
    "segments",
    "ledger.lock",
    "ledger.shards",
    "ledger.codec",
    "ledger.journal",
    "ledger.books",
    "ledger.claims",
    "ledger.history",
    "ledger.backup",
    "ledger.core",
    "ledger",
    "spanner",
    "regression",
    "logistic",
    "policy",
    "samplers",
    "stepwise",
    "coverage",
    "explorers.learner",
    "explorers.pools",
    "explorers.protocol",
    "explorers.candidates",
    "explorers.duels",
    "explorers.pooled",
    "explorers.pairing",
    "explorers.random_draws",
    "explorers.passive",
    "explorers.random_singles",
    "explorers.spanner_adaptive",
    "explorers.spanner_sampling",
    "explorers.online_dpo",
    "explorers.xpo",
    "explorers.thompson",
    "explorers.best_of_n",
    "explorers.epsilon_greedy",
    "explorers.coreset",
    "explorers.active_preference",
    "explorers.linucb",
    "explorers.design",
    "explorers.foresight",
    "explorers.directed",
    "explorers.paths",
    "explorers.trunk",
    "explorers.multi_turn",
    "explorers.layered_parts",
    "explorers.layered",
    "explorers",
    "environments.tabular",
    "environments.parts",
    "environments.rare_skill",
    "environments.power_law",
    "environments.deceptive",
    "environments.decoys",
    "environments.low_variance",
    "environments.near_orthogonal",
    "environments.max_k_dnf",
    "environments.tie",
    "environments.compose",
    "environments.factory",
    "environments.token_parts",
    "environments.token",
    "environments.token_compose",
    "environments.token_families",
    "environments",
    "backends.cache",
    "backends.prefixes",
    "backends.forward",
    "backends.decoding",
    "backends.resuming",
    "backends.collapse",
    "backends.batching",
    "backends.scoring",
    "backends.text",
    "backends.spelling",
    "backends.oracle",
    "backends.conversation",
    "backends.huggingface",
    "backends.spool",
    "backends.wire",
    "backends.endpoint",
    "backends.probing",
    "backends.pieces",
    "backends.server",
    "bundled",
    "bundled.helpdesk.task",
    "bundled.helpdesk.conversation",
    "bundled.helpdesk",
    "bundled.countdown.task",
    "bundled.countdown",
    "sources",
    "sources.worker",
    "sources.process",
    "sources.mathematics",
    "sources.verifiers",
    "sources.server",
    "sources.judge",
    "evaluation",
    "tilted",
    "buying",
    "run",
    "fields",
    "inputs",
    "functions",
    "api",
    "askdriver",
    "questions",
    "asking",
    "measures",
    "sourcing",
    "config",
    "tasks",
    "summary",
    "figures",
    "report",
    "job",
    "live",
    "terminal",
    "options",
    "labelfiles",
    "ask_command",
    "exporting",
    "export_command",
    "trl_rewards",
    "web",
    "web.desk",
    "web.export",
    "web.security",
    "web.label",
    "web.command",
    "web.forms",
    "web.serve",
    "web.serve_command",
    "foundation",
    "foundation.pool",
    "foundation.unseen",
    "foundation.span",
    "foundation.mixture",
    "foundation.success",
    "foundation.bounds",
    "foundation.reach",
    "foundation.trees",
    "foundation.steps",
    "foundation.maps",
    "foundation.surrogate",
    "foundation.forecast",
    "foundation.gather",
    "foundation.past",
    "foundation.verdict",
    "foundation.document",
    "foundation.canvas",
    "foundation.figures",
    "foundation.page",
    "foundation.job",
    "foundation.command",
    "spannerlm",
    "bench.plans",
    "bench.tables",
    "bench.paper_plan",
    "bench.watched",
    "bench.rows",
    "bench.statistics",
    "bench.suites",
    "bench.show",
    "bench.paper_claims",
    "bench.paper_direct",
    "bench.paper_axes",
    "bench.paper_steps",
    "bench.paper_figures",
    "bench.paper_words",
    "bench.paper",
    "bench",
    "bench.command",
    "cli",
]
"""Every module of the package, by its name below `spannerlm`; a package's own name is its `__init__`."""

TABLES = ("explorers", "environments")
"""Packages to which anybody adds a file and a line in their table: one that is not listed stands last among them."""

LAZY = ("torch", "transformers", "tokenizers", "fastapi", "uvicorn", "openai", "httpx", "ray", "trl", "peft")
"""What only an extra brings: never imported with the package."""


def modules(source: Path) -> dict[str, Path]:
    """Module name -> file, for every file below the source folder."""
    found = {}
    for file in sorted(source.rglob("*.py")):
        parts = file.relative_to(source).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or "spannerlm"] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The package's modules that a file imports, anywhere in it: at the top, in functions, for type checkers."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            base = node.module or ""
            below = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("spannerlm.") in known else base for name in below]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "spannerlm":
                yield name.removeprefix("spannerlm.")


def with_leaves(known: Iterable[str], order: list[str]) -> list[str]:
    """The order with files of `TABLES` that it does not list, each right above its package."""
    full = list(order)
    for name in known:
        package, dot, _ = name.rpartition(".")
        if dot and package in TABLES and package in full and name not in full:
            full.insert(full.index(package), name)
    return full


def violations(source: Path, order: list[str]) -> list[str]:
    """What breaks the order, in words; empty where nothing does."""
    known = modules(source)
    order = with_leaves(known, order)
    wrong = [f"{name} is not in the order: say where it belongs" for name in known if name not in order]
    wrong += [f"{name} is in the order and nowhere else" for name in order if name not in known]
    wrong += [f"{name} is in the order twice" for name in set(order) if order.count(name) > 1]
    place = {name: i for i, name in enumerate(order)}
    for name, file in known.items():
        for other in sorted(set(imports(file, known))):
            if name in place and place.get(other, len(order)) >= place[name]:
                wrong.append(f"{name} imports {other}, which does not stand above it")
    return wrong


def test_every_file_imports_only_files_above_it() -> None:
    assert violations(SOURCE, ORDER) == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a": "from spannerlm import b"}, "a imports b"),
        ({"a": "from spannerlm.b import x"}, "a imports b"),
        ({"a": "import spannerlm.b"}, "a imports b"),
        ({"a": "def f():\n    from spannerlm.b import x"}, "a imports b"),
        ({"a": "import spannerlm.a"}, "a imports a"),
        ({"a": "from spannerlm.pkg.c import x"}, "a imports pkg.c"),
        ({"pkg/c": "from spannerlm.pkg import x"}, "pkg.c imports pkg"),
        ({"pkg/c": "from spannerlm.nowhere import x"}, "pkg.c imports nowhere"),
        ({"new": ""}, "new is not in the order"),
        ({"pkg/new": ""}, "pkg.new is not in the order"),
        ({"explorers/new": "from spannerlm.explorers import x"}, "explorers.new imports explorers"),
        ({"explorers/old": "from spannerlm.explorers import new", "explorers/new": ""}, "explorers.old imports"),
        ({"b": None}, "b is in the order and nowhere else"),
    ],
)
def test_the_check_catches(files: dict[str, str | None], says: str, tmp_path: Path) -> None:
    tree: dict[str, str | None] = {"a": "import os", "b": "from spannerlm.a import x", "pkg/c": "", "pkg/__init__": ""}
    tree |= {"explorers/old": "", "explorers/leaf": "from spannerlm.explorers import old", "explorers/__init__": ""}
    tree["__init__"] = "from spannerlm import b"
    order = ["a", "b", "pkg.c", "pkg", "explorers.old", "explorers", "spannerlm"]
    write(tmp_path, tree)
    assert violations(tmp_path, order) == []
    write(tmp_path, files)
    assert violations(tmp_path, order)[0].startswith(says)


def write(folder: Path, files: dict[str, str | None]) -> None:
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)


@pytest.mark.parametrize("module", ["spannerlm", "spannerlm.cli", "spannerlm.backends", "spannerlm.bundled.helpdesk"])
def test_importing_the_package_imports_no_extra(module: str) -> None:
    code = f"import {module}, sys; print(*sorted(set({LAZY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_only_back_ends_import_torch_and_only_core_dependencies_elsewhere() -> None:
    """Third-party names at the top of a file: those of the core's requirements, and torch's in back ends alone."""
    core = {line.split(";")[0].strip() for line in requires("spannerlm") or [] if "extra ==" not in line}
    names = {line.split(">")[0].split("=")[0].split("<")[0].strip().lower() for line in core}
    allowed = {{"scikit-learn": "sklearn", "pyyaml": "yaml"}.get(name, name.replace("-", "_")) for name in names}
    for name, file in modules(SOURCE).items():
        top = [
            n for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, (ast.Import, ast.ImportFrom))
        ]
        found = {(n.module or "") if isinstance(n, ast.ImportFrom) else a.name for n in top for a in n.names}
        third = {f.split(".")[0] for f in found} - set(sys.stdlib_module_names) - {"spannerlm"}
        extra = {"torch", "transformers", "huggingface_hub"} if name.startswith("backends.") else set()
        extra |= {"fastapi"} if name in ("web.label", "web.serve") else set()
        assert third <= allowed | extra, f"{name} imports {sorted(third - allowed - extra)}"
