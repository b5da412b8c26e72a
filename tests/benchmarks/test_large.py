"""The table of a large prior: operations against a count of the real calls, timing, resumption."""

import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import large
from benchmarks.large_rows import ROWS, Row, Scene, make_scene
from benchmarks.operations import Parts, count_parts, operations
from benchmarks.pipelines import write_pipeline
from benchmarks.tables import read_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline("tiny", tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def scene_and_parts(folder: Path) -> tuple[Scene, Parts]:
    scene = make_scene(str(folder), "sd15_inpaint", tiny=True)
    parts = count_parts(scene)
    scene.to(torch.device("cpu"))
    return scene, parts


@pytest.mark.parametrize("name", ROWS)
def test_operations_are_those_of_the_call(name: str, scene_and_parts: tuple[Scene, Parts]) -> None:
    """The formula of each row against a count of its real call, which checkpoints cut a bit short.

    Mutant: one prompt in a guided call, no second forward pass under checkpoints, fits without
    backward passes, a batch that is not multiplied, attention or the encoder left out.
    """
    scene, parts = scene_and_parts
    action = ROWS[name].prepare(scene)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        action()
    expected = counter.get_total_flops()
    assert ROWS[name].operations(parts, scene) == pytest.approx(expected, rel=0.02)


def test_rows_do_what_they_say(scene_and_parts: tuple[Scene, Parts]) -> None:
    """Prior calls of a row, and whether it trains.

    Mutant: stored pairs that are generated anew, guidance that stays on for the next row, a
    training step without its update, f in a pass of the sampler.
    """
    scene, _ = scene_and_parts
    calls = {}
    for name, row in ROWS.items():
        action, before = row.prepare(scene), scene.posterior.prior_calls
        weights = [w.clone() for w in scene.sampler.parameters()]
        action()
        moved = any(
            not torch.equal(a, b) for a, b in zip(weights, scene.sampler.parameters(), strict=True)
        )
        assert moved == (name == "pairs")
        calls[name] = scene.posterior.prior_calls - before
        assert len(scene.prior.embeddings) == 1 + ("guided" in name)
    assert calls == {
        **{"f": 1, "f_guided": 1, "f_batch": 8, "f_gradient": 1},
        **{"psld": 0, "pairs": 0, "pass": 0},
    }


def test_operations_of_a_layer() -> None:
    """2 m n for each row of a linear layer; its backward pass in input or weights as much again.

    Mutant: multiplications with additions counted once, or gradients of frozen weights.
    """
    layer = torch.nn.Linear(30, 50, bias=False).requires_grad_(False)
    shape = [((7, 30), torch.float32)]
    frozen = operations(layer, shape)
    assert (frozen.forward, frozen.both) == (2 * 7 * 30 * 50, 2 * 2 * 7 * 30 * 50)
    assert frozen.checkpointed == 3 * 2 * 7 * 30 * 50
    layer.requires_grad_()
    trained = operations(layer, shape, list(layer.parameters()))
    assert (trained.forward, trained.both) == (2 * 7 * 30 * 50, 2 * 2 * 7 * 30 * 50)


def test_other_accelerators_reach_the_same_share() -> None:
    """Mutant: a share upside down, or this machine's peak for the others."""
    record = large.computed({"seconds": 0.5, "tflop": 100.0}, peak=400.0)
    assert record["share"] == pytest.approx(0.5)
    assert record["on A100"] == pytest.approx(100 / 156)
    assert record["on H100"] == pytest.approx(100 / 494.5)


def test_peak_is_of_the_data_sheet_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the first key that is a part of the name, or a rate in FLOP/s."""
    monkeypatch.setattr(large, "matrix_rate", lambda *_: 0.123)
    names = {"NVIDIA H100 80GB HBM3": 989.0, "NVIDIA H100 PCIe": 756.0, "a CPU": 0.123}
    for name, peak in names.items():
        monkeypatch.setattr(large, "device_name", lambda _, name=name: name)
        assert large.peak_rate(torch.device("cpu"), 8) == peak
    monkeypatch.undo()
    a = torch.randn(512, 512).bfloat16()
    start = time.perf_counter()
    for _ in range(3):
        a @ a
    rough = 3 * 2 * 512**3 / (time.perf_counter() - start) / 1e12
    assert rough / 20 < large.matrix_rate(torch.device("cpu"), 512) < 20 * rough


def test_memory_is_the_peak_inside_the_block() -> None:
    """Mutant: what is held at the end, or the largest peak since the process began."""
    before = torch.ones(2**27)  # half a GiB, gone before the block
    del before
    with large.memory(torch.device("cpu")) as small:
        torch.ones(10)
    with large.memory(torch.device("cpu")) as big:
        held = torch.ones(2**26)
        del held
    assert big[0] - small[0] > 0.2


def test_measure_takes_the_best_after_a_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: set-up or the first call in the measurement, or a mean."""
    waits = iter([0.3, 0.1, 0.02, 0.2])

    def prepare(_: Scene) -> object:
        time.sleep(0.3)
        return lambda: time.sleep(next(waits))

    monkeypatch.setitem(ROWS, "f", Row(lambda _: "f", prepare, lambda *_: 1.0))  # type: ignore[arg-type]

    class Anywhere:
        device = torch.device("cpu")

    seconds = large.measure("f", Anywhere(), 3)["seconds"]  # type: ignore[arg-type]
    assert 0.02 <= float(str(seconds)) < 0.09


def test_command_continues_and_refuses(
    folder: Path,
    scene_and_parts: tuple[Scene, Parts],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that are there stay; a row of another size is refused; the page keeps its other text.

    Mutant: everything measured again, a CSV file of mixed sizes, or a page that is overwritten.
    """
    monkeypatch.setattr(large, "count_parts", lambda _: scene_and_parts[1])  # takes seconds
    out = tmp_path / "sd15.csv"
    page = out.with_suffix(".md")
    page.write_text("Read me.\n<!-- sd15:start -->\nold\n<!-- sd15:end -->\nThe end.\n")
    common = ["--device", "cpu", "--threads", "1", "--repeats", "1", "--out", str(out)]
    common += ["--readme", str(tmp_path / "README.md"), "--path", str(folder)]
    large.main([*common, "--quick", "--rows", "pass"])
    first = read_csv(out)
    large.main([*common, "--quick", "--rows", "f,pass"])
    second = read_csv(out)
    assert second[0] == first[0]
    assert [r["row"] for r in second] == ["pass", "f"]
    text = page.read_text()
    assert text.startswith("Read me.\n")
    assert text.endswith("The end.\n")
    assert "old" not in text
    assert text.index("f(z), 3 DDIM steps, guidance 1 |") < text.index(
        "a posterior sample, 2 network calls, fits of 2, 1 steps"
    )
    for more, message in (
        ((), "rows with size = tiny, this call has full"),
        (("--quick", "--rows", "f,g"), "--rows must be of f, .*, got g"),
        (("--quick", "--repeats", "0"), "--repeats must be >= 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            large.main([*common, *more])
