"""A smaller demo learns from the demo: the stored logits, the loss, and a recovery that is interrupted."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.errors import BudgetError, UsageError
from edgeglm.export.checkpoint.lineage import Lineage
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.answers import WEIGHT, distillation_loss
from edgeglm.export.compress.choose import choose_by_l1
from edgeglm.export.compress.cuts import cut_config, cut_tensors
from edgeglm.export.compress.lessons import Lessons, collate, encode, pieces, read_lessons
from edgeglm.export.compress.options import check_recovery
from edgeglm.export.compress.parts import find_parts
from edgeglm.export.compress.rates import parse_rates, plan_parts
from edgeglm.export.compress.recover import recover
from edgeglm.export.compress.student import Settings, Student
from edgeglm.export.compress.teacher import TEMPERATURE, Teacher
from edgeglm.export.compress.write import write_checkpoint
from edgeglm.export.evaluate.original.whole import Prompts, WholeOriginal
from edgeglm.export.requests import CompressRequest
from edgeglm.export.samples.shipped import DATA

SAMPLES = 33
VOCABULARY = 4096
Tell = Callable[[str, float], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the demo's first calibration samples."""
    folder = tmp_path_factory.mktemp("data")
    lines = (DATA / "calibration.jsonl").read_text().splitlines(keepends=True)[:SAMPLES]
    (folder / "samples.jsonl").write_text("".join(lines))
    (folder / "calibration").mkdir()
    for file in sorted((DATA / "calibration").iterdir())[: SAMPLES + 1]:
        shutil.copyfile(file, folder / "calibration" / file.name)
    return folder / "samples.jsonl"


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "smaller"
    checkpoint = Checkpoint.open(DEMO)
    plan = plan_parts(find_parts(checkpoint), parse_rates("mlp=20%"), checkpoint)
    cuts = cut_tensors(checkpoint, plan, choose_by_l1(plan, checkpoint))
    lineage = Lineage(original="edgeglm-demo", place=None, sha256="0" * 64, steps=())
    write_checkpoint(folder, cuts, checkpoint, cut_config(checkpoint.config, plan), lineage, lambda done: None)
    return folder


@pytest.fixture(scope="module")
def taught(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lessons, Teacher]:
    """The lessons and the demo's logits."""
    prompts = Prompts.load(DEMO)
    lessons = read_lessons(data, prompts, DEMO)
    teacher = Teacher(tmp_path_factory.mktemp("teacher") / "t.bin", VOCABULARY, [*lessons.taught, *lessons.held])
    teacher.store(Checkpoint.open(DEMO), prompts, lambda done: None)
    return lessons, teacher


def student(smaller: Path, work: Path, taught: tuple[Lessons, Teacher], settings: Settings) -> Student:
    work.mkdir(exist_ok=True)
    lessons, teacher = taught
    few = Lessons(lessons.taught[:20], lessons.held[:2])
    torch.manual_seed(0)
    return Student(smaller, work, few, teacher, settings, lambda stage, done: None)


def test_the_stored_logits_are_those_of_the_whole_teacher(taught: tuple[Lessons, Teacher]) -> None:
    lessons, teacher = taught
    assert teacher.file.stat().st_size == teacher.nbytes
    whole, some = WholeOriginal.load(DEMO), [lessons.taught[0], lessons.taught[3], lessons.held[1]]
    batch = collate(whole, [encode(whole, lesson) for lesson in some])
    with torch.inference_mode():
        logits = whole.model(**batch.inputs).logits[batch.places[0], batch.places[1]]
    records = teacher.records(some)
    assert len(records) == len(logits) == sum(len(lesson.tokens) + 1 for lesson in some)
    largest, ids = logits.topk(records["ids"].shape[1])
    assert np.allclose(records["logits"], largest.numpy(), atol=1e-3)
    assert (records["ids"][:, 0] == ids[:, 0].numpy()).all()
    others = logits.scatter(1, torch.from_numpy(records["ids"].astype(np.int64)), -torch.inf) / TEMPERATURE
    assert np.allclose(records["rest"], others.logsumexp(-1).numpy(), atol=1e-3)
    # What the teacher reads are the lessons: it gives nearly all of their tokens itself.
    right = [token for lesson in some for token in (*lesson.tokens, -1)]
    assert np.mean([own == want for own, want in zip(records["ids"][:, 0], right, strict=True) if want >= 0]) > 0.9


def test_the_loss_is_that_of_whole_distributions_and_none_between_equals(taught: tuple[Lessons, Teacher]) -> None:
    lessons, teacher = taught
    records = teacher.records(lessons.taught[:1])
    random = torch.randn(len(records), VOCABULARY, generator=torch.Generator().manual_seed(1))
    right = torch.from_numpy(records["ids"][:, 0].astype(np.int64))
    equal = torch.full((len(records), VOCABULARY), -1.0)
    # The others share what is left of the sum evenly.
    rest = torch.from_numpy(records["rest"])[:, None] - np.log(VOCABULARY - records["ids"].shape[1])
    equal[:] = rest * TEMPERATURE
    equal.scatter_(1, torch.from_numpy(records["ids"].astype(np.int64)), torch.from_numpy(records["logits"]))
    plain = torch.nn.functional.cross_entropy(equal, right)
    assert float(distillation_loss(equal, records, right)) == pytest.approx(float((1 - WEIGHT) * plain), abs=1e-3)
    wanted, mine = (equal / TEMPERATURE).log_softmax(-1), (random / TEMPERATURE).log_softmax(-1)
    soft = (wanted.exp() * (wanted - mine)).sum(-1).mean() * TEMPERATURE**2
    whole = WEIGHT * soft + (1 - WEIGHT) * torch.nn.functional.cross_entropy(random, right)
    # The student's spread within the one sum of the others does not count.
    assert 0.5 * float(whole) < float(distillation_loss(random, records, right)) < float(whole)


@pytest.mark.slow
def test_a_recovery_that_ended_early_goes_on_to_the_same_weights(
    smaller: Path, taught: tuple[Lessons, Teacher], tmp_path: Path
) -> None:
    settings = Settings(epochs=1, rate=1e-3, freeze=("vision",))
    straight = student(smaller, tmp_path / "straight", taught, settings)
    before = {name: value.clone() for name, value in straight.model.state_dict().items()}
    losses = [straight.step() for _ in range(2)]
    first = student(smaller, tmp_path / "broken", taught, settings)
    assert first.step() == pytest.approx(losses[0], rel=1e-5)
    first._save()
    second = student(smaller, tmp_path / "broken", taught, settings)
    second._load()
    assert second.history.step == 1
    assert second.step() == pytest.approx(losses[1], rel=1e-4)
    after = straight.model.state_dict()
    for name, value in second.model.state_dict().items():
        assert torch.allclose(value, after[name], atol=1e-5), name
        assert torch.equal(value, before[name]) is (".visual." in name), name


def test_activations_that_are_computed_again_change_nothing(
    smaller: Path, taught: tuple[Lessons, Teacher], tmp_path: Path
) -> None:
    gradients = []
    for again in (False, True):
        made = student(smaller, tmp_path / str(again), taught, Settings(1, 1e-3, ("vision",), checkpointing=again))
        made.model.train()
        calls: list[object] = []
        block = made.model.model.language_model.layers[1].mlp
        block.register_forward_pre_hook(lambda *_: calls.append(1))  # noqa: B023
        made.loss([encode(made.prompts, lesson) for lesson in made.lessons.taught[:2]]).backward()
        assert len(calls) == 1 + again
        gradients.append(made.model.model.language_model.layers[0].mlp.down_proj.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_lessons_are_batched_by_their_tokens(taught: tuple[Lessons, Teacher]) -> None:
    prompts, (lessons, _) = Prompts.load(DEMO), taught
    encoded = [encode(prompts, lesson) for lesson in lessons.taught[:5]]
    longest = max(len(lesson.tokens) for lesson in encoded)
    assert [len(piece) for piece in pieces(encoded, 2 * longest)] == [2, 2, 1]
    assert [len(piece) for piece in pieces(encoded, 1)] == [1] * 5


def test_the_teacher_goes_on_where_a_killed_run_stopped(taught: tuple[Lessons, Teacher], tmp_path: Path) -> None:
    _, teacher = taught
    whole = teacher.file.read_bytes()
    partial = Teacher(tmp_path / "t.bin", VOCABULARY, teacher.lessons)
    # All but the last lesson, and a piece of it.
    partial.file.write_bytes(whole[: partial.starts[-2] * partial.type.itemsize + 7])
    partial.store(Checkpoint.open(DEMO), Prompts.load(DEMO), lambda done: None)
    stored = np.frombuffer(partial.file.read_bytes(), partial.type)
    assert np.allclose(stored["logits"], np.frombuffer(whole, partial.type)["logits"], atol=1e-3)


def test_too_few_samples_and_a_full_disk_are_one_line(smaller: Path, data: Path, tmp_path: Path) -> None:
    few = data.with_name("few.jsonl")
    few.write_text("".join(data.read_text().splitlines(keepends=True)[:31]))
    checkpoint = Checkpoint.open(DEMO)
    request = CompressRequest(output=tmp_path / "out", prune="40%", distill=few)
    with pytest.raises(UsageError, match="holds 31 samples; recover with 32 or more"):
        check_recovery(request, checkpoint)
    words = data.with_name("words.txt")
    words.write_text("words")
    with pytest.raises(UsageError, match=r"is not what the model reads; give samples \(.jsonl\)"):
        check_recovery(msgspec.structs.replace(request, distill=words), checkpoint)
    request = CompressRequest(output=tmp_path / "out", prune="40%", distill=data)
    check_recovery(request, checkpoint)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(BudgetError, match="may not become so large here"):
            recover(request, checkpoint, smaller, tmp_path, 8 << 30, lambda stage, done: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(BudgetError, match="too little to recover"):
        recover(request, checkpoint, smaller, tmp_path, 500 << 20, lambda stage, done: None)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"freeze": ("vison",)}, "vison: is not a module of the model; did you mean vision"),
        ({"freeze": ("vision", "decoder", "embedding")}, "leaves nothing to learn"),
        ({"epochs": 0}, "--epochs 0: is none"),
        ({"learning_rate": float("nan")}, "is no rate"),
        ({"learning_rate": 2.0}, "is no rate"),
    ],
)
def test_wrong_options_of_a_recovery_are_refused(options: dict[str, object], why: str, tmp_path: Path) -> None:
    request = CompressRequest(output=tmp_path, prune="40%", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=why):
        check_recovery(request, Checkpoint.open(DEMO))


def test_what_is_zero_stays_zero_while_the_rest_learns(
    smaller: Path, taught: tuple[Lessons, Teacher], tmp_path: Path
) -> None:
    made = student(smaller, tmp_path / "work", taught, Settings(1, 1e-2, sparse=True))
    weight = made.model.model.language_model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5] = 0
    before = weight.detach().clone()
    zeros = before == 0  # the checkpoint has some of its own
    for _ in range(2):
        made.step()
    assert torch.equal(weight.detach() == 0, zeros)
    assert (weight[~zeros] != before[~zeros]).float().mean() > 0.9
