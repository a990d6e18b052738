"""Benches: every listed module exists, and no modules of bench/ import each other in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from app.inference.explain import presence_bits
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelVersion
from app.network.ensemble import Ensemble
from app.registry.model_store import ModelStore
from bench import gpu_backends
from bench.eager_model import EagerModel
from bench.model_stores import STORES, demo_networks
from tests.factory import random_network, tiny_manifest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imported(tree: ast.Module) -> set[str]:
    """Return the names of all imports, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "bench/ uses absolute imports only"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def import_graph() -> dict[str, set[str]]:
    """Return the modules of bench/ that each module of bench/ imports."""
    trees = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in BENCH.rglob("*.py")}
    return {name: imported(tree) & trees.keys() - {name} for name, tree in trees.items()}


def test_no_import_circle() -> None:
    graph = import_graph()
    assert graph["bench.swap"] >= {"bench.server_process", "bench.model_stores"}
    TopologicalSorter(graph).prepare()


def test_an_import_circle_would_be_found() -> None:
    graph = import_graph()
    graph["bench.server_process"].add("bench.swap")
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("model", list(STORES))
def test_peers_and_rlvo_compute_the_same_number_of_each_model(model: str, tmp_path: Path) -> None:
    image, clinical = STORES[model](tmp_path)
    entry = ModelStore(tmp_path).resolve("bench")
    version = ModelVersion.load(entry.folder, entry.manifest, "cpu")
    presence = clinical[0, presence_bits(entry.manifest)] > 0
    side = version.shown_side(image[0], presence)
    expected = version.predict(ModelInput(image[0], presence, clinical[0], affected=side)).probability
    threads = torch.get_num_threads()
    try:
        found = EagerModel(entry.folder).predict(image.tobytes() + clinical.tobytes())
    finally:
        torch.set_num_threads(threads)
    assert found["probability"] == pytest.approx(expected, abs=1e-5)


def test_variants_of_the_trunks_on_a_card_are_those_that_compute_the_same() -> None:
    """The variants that no card is needed for, on the CPU; only trunks of one path each have a wide one."""
    networks, _ = demo_networks()
    demo = Ensemble(networks)
    image = torch.zeros(1, 5, 16, 16, 16)
    assert not [name for name in gpu_backends.variants(demo, image) if "wide" in name or "grouped" in name]
    architecture = tiny_manifest().architecture.model_copy(update={"in_channels": 5})
    ensemble = Ensemble([random_network(architecture, seed) for seed in (1, 2)])
    assert {"wide, graph", "grouped, graph"} <= set(gpu_backends.variants(ensemble, image))
    image = ensemble.image(torch.rand(5, 16, 16, 16))
    exact = [fold.trunk(image) for fold in ensemble.distinct]
    for grouped in (False, True):
        found = gpu_backends.WideTrunk(ensemble.distinct, grouped=grouped)(image)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, exact, strict=True))


def test_every_listed_bench_exists_and_is_described() -> None:
    run = subprocess.run([sys.executable, "-m", "bench", "--list"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    lines = [line.split(maxsplit=1) for line in run.stdout.splitlines()]
    assert len(lines) > 10
    for name, description in lines:
        assert find_spec(f"bench.{name}"), name
        assert description.endswith("."), name


def test_documented_benches_are_listed() -> None:
    run = subprocess.run([sys.executable, "-m", "bench", "--list"], capture_output=True, text=True, cwd=ROOT)
    listed = {line.split()[0] for line in run.stdout.splitlines()}
    text = "".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
    words = text.replace("python -m bench.", "python -m bench ").split("python -m bench ")[1:]
    named = {word.split()[0].strip("`,.;:)") for word in words}
    assert {name for name in named if not name.startswith(("-", "_"))} <= listed


def test_unknown_bench_is_named() -> None:
    run = subprocess.run([sys.executable, "-m", "bench", "unheard-of"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2
    assert "unknown bench: unheard-of" in run.stderr
