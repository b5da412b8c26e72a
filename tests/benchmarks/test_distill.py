"""The table of students: who is compared with whom, what is trained, and what a row needs."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import distill, students
from benchmarks.cells import Effort
from benchmarks.problems import linear_gaussian
from benchmarks.rows import FULL
from benchmarks.students import Student
from benchmarks.tables import read_csv
from outsourced.bank import PairBank


@pytest.mark.parametrize(
    ("text", "steps", "components", "name"), [("4", 4, 1, "4"), ("1x8", 1, 8, "1x8")]
)
def test_students_are_named_by_their_shape(text, steps, components, name) -> None:
    """Mutant: parts and steps exchanged."""
    student = Student.parse(text)
    assert (student.steps, student.components, student.name) == (steps, components, name)
    for wrong in ("0", "x8", "4x0", "4x", "four"):
        with pytest.raises(ValueError, match=f"--students must be like .* got '{wrong}'"):
            Student.parse(wrong)


def test_a_student_of_a_problem_learns_from_the_teacher(tmp_path, monkeypatch) -> None:
    """It starts as the teacher, its lesson asks the teacher, and it has the steps asked for.

    Mutant: a student that is trained on pairs, from scratch, or with a grid of its own.
    """
    monkeypatch.setattr(students, "LESSON", {"batch": 4, "teacher_draws": 3})
    problem = linear_gaussian()
    bank = PairBank.build(problem.posterior, tmp_path, 64, progress=False)
    teacher = students.new_sampler(problem, students.TEACHER)
    with torch.no_grad():
        teacher.control.network.head.bias[:16] = 0.7
    asked = []
    call = teacher.forward_path
    monkeypatch.setattr(
        teacher, "forward_path", lambda obs, n, *a: asked.append((len(obs), n)) or call(obs, n, *a)
    )
    student, seconds = students.teach(problem, teacher, Student(2), bank, 3, 0)
    assert asked == [(4, 3)] * 3
    assert seconds > 0
    assert (student.steps, student.reference.grid) == (2, FULL["steps"])
    assert (student.control.network.head.bias[:16] - 0.7).abs().max() < 0.1


def test_teacher_is_kept_with_its_budget(tmp_path, monkeypatch) -> None:
    """Mutant: a teacher of another budget under the same name, or one trained anew each time."""
    problem = linear_gaussian()
    bank = PairBank.build(problem.posterior, tmp_path / "bank", 64, progress=False)
    trained = []

    class Module:
        seconds = 1.0

        def __init__(self) -> None:
            self.average = students.new_sampler(problem, students.TEACHER).state_dict()
            self.average["control.network.head.bias"] += 5.0

    monkeypatch.setattr(students, "schedule", lambda *_: None)
    monkeypatch.setattr(students, "fit", lambda *_: (trained.append(1) or Module(), 0.0))
    path = tmp_path / "deep" / "linear.safetensors"
    for _ in range(2):
        teacher = students.teacher_of(problem, bank, Effort(1.0), path)
        assert teacher.control.network.head.bias.min() == 5.0
    assert len(trained) == 1
    with pytest.raises(ValueError, match=r"was trained for 1.0 s, this call asks for 2.0"):
        students.teacher_of(problem, bank, Effort(2.0), path)


def test_apart_sees_each_observation() -> None:
    """Alike for each y scores 0.5; the same draws given to other y do not.

    Mutant: all observations in one heap, where exchanged ones look alike.
    """
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([-3.0, 3.0])[:, None]
    a, b = (centre + torch.randn(100, 2, 1, generator=generator) for _ in range(2))
    assert distill.apart(a, b, 0) < 0.62
    assert distill.apart(a, b.flip(1), 0) > 0.95


def test_times_are_of_one_and_of_many_observations(monkeypatch) -> None:
    """Mutant: 64 samples of each of 64 observations, or prior calls of all for a sample."""
    problem = linear_gaussian()
    sampler = students.new_sampler(problem, Student(2, 3))
    _, _, obs = problem.posterior.simulate(5, torch.Generator().manual_seed(0))
    shapes = []
    decode = problem.posterior.decode
    monkeypatch.setattr(problem.posterior, "decode", lambda z: shapes.append(len(z)) or decode(z))
    seen = []
    forward = sampler.forward_path
    monkeypatch.setattr(
        sampler,
        "forward_path",
        lambda o, n, *a, **k: seen.append((len(o), n)) or forward(o, n, *a, **k),
    )
    found = distill.costs(sampler, problem.posterior, obs, 1)
    assert set(seen) == {(1, 64), (64, 1)}
    assert set(shapes) == {64}
    assert found["prior_calls"] == 1.0
    assert (found["steps"], found["components"]) == (2, 3)


def test_command_on_a_problem_continues(tmp_path, monkeypatch) -> None:
    """A row each for teacher and students; the second call adds only what is missing.

    Mutant: the teacher's figures in the row of a student, or rows that are measured twice.
    """
    monkeypatch.setattr(
        distill, "teacher_of", lambda p, *_: students.new_sampler(p, students.TEACHER)
    )
    taught = []

    def teach(problem, teacher, student, *_):
        taught.append(student.name)
        sampler = students.new_sampler(problem, student)
        with torch.no_grad():
            sampler.control.network.head.bias[:2] = 1.0
        return sampler, 2.5

    monkeypatch.setattr(distill, "teach", teach)
    out = tmp_path / "distill.csv"
    call = ["--quick", "--problems", "mixture", "--out", str(out), "--repeats", "1"]
    call += ["--readme", str(tmp_path / "README.md")]
    distill.main([*call, "--students", "1"])
    first = read_csv(out)
    distill.main([*call, "--students", "1", "2x2"])
    rows = read_csv(out)
    assert rows[:2] == first
    assert taught == ["1", "2x2"]
    assert [(r["student"], r["steps"], r["components"]) for r in rows] == [
        ("teacher", "25", "1"),
        ("1", "1", "1"),
        ("2x2", "2", "2"),
    ]
    assert float(rows[1]["gap"]) > float(rows[0]["gap"])
    assert float(rows[1]["c2st_teacher"]) > float(rows[0]["c2st_teacher"])
    assert rows[1]["train_seconds"] == "2.5"
    text = out.with_suffix(".md").read_text()
    assert "| mixture | simulated | 2x2 | 2 | 2 |" in text
    with pytest.raises(SystemExit, match="--problems must be of linear, mixture, moons, got moon"):
        distill.main(["--problems", "moon", "--out", str(out)])


def test_runs_are_trained_beside_their_teacher(tmp_path, monkeypatch) -> None:
    """Mutant: a folder over the teacher's, a finished student trained again, lost arguments."""
    calls = []
    monkeypatch.setattr(
        students, "train", lambda folder, overrides: calls.append((folder, overrides))
    )
    teacher = tmp_path / "runs" / "a"
    folder = students.student_run(teacher, Student(1, 4), 9, ["trainer.batch=3"])
    assert folder == tmp_path / "runs" / "a-1x4"
    given = {f"distill={teacher}", "sampler.steps=1", "sampler.components=4", "trainer.max_steps=9"}
    assert calls[0][0] == folder
    assert given | {"trainer.batch=3"} <= set(calls[0][1])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}))
    (folder / "sampler.safetensors").write_bytes(b"")
    assert students.student_run(teacher, Student(1, 4), 9, []) == Path(folder)
    assert len(calls) == 1
