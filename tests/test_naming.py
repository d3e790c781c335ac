"""Names with probabilities and "none of these": what the fit makes of cosines whose meaning is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.evaluate.features import load_student
from recon.trainer.use.naming import Calibration, calibrate, class_vectors, fit, parse_classes
from recon.trainer.use.words import text_space
from tests.probed_run import CPU
from tests.test_docs import succeeds
from tests.test_use import refused


def made_up(own: float, spread: float, shapes: int = 300) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines of shapes with 12 categories, higher by `own` with their own."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 12, shapes)
    cosines = rng.normal(0.2, spread, (shapes, 12))
    cosines[np.arange(shapes), truth] += own
    return cosines.astype(np.float32), truth


def test_a_name_that_is_there_is_told_from_one_that_is_not() -> None:
    cosines, truth = made_up(0.5, 0.05)
    scale = fit(cosines, truth, 4, 0)
    assert scale.auroc > 0.99 and (scale.num_shapes, scale.num_categories) == (300, 12)
    shares, none = scale.probabilities(np.array([0.7, 0.2, 0.21, 0.15], np.float32))
    assert shares[0] > 0.9 and none < 0.05
    assert scale.probabilities(np.array([0.25, 0.2, 0.21, 0.15], np.float32))[1] > 0.9


def test_cosines_that_say_nothing_leave_everything_open() -> None:
    cosines, truth = made_up(0.0, 0.05)
    scale = fit(cosines, truth, 4, 0)
    assert 0.4 < scale.auroc < 0.6
    shares, none = scale.probabilities(cosines[0, :4])
    assert 0.3 < none < 0.7 and shares.max() < 0.4


def test_probabilities_are_calibrated() -> None:
    """Of shapes that the fit did not see, those named with p are rightly named in about p of all cases."""
    cosines, truth = made_up(0.08, 0.05, 2000)
    scale = fit(cosines[:1000], truth[:1000], 11, 0)
    rng, sure, right = np.random.default_rng(1), [], []
    for row, own in zip(cosines[1000:], truth[1000:], strict=True):
        others = rng.permutation(np.delete(np.arange(12), own))[:10]
        names = np.array([own, *others])
        shares, none = scale.probabilities(row[names])
        sure.append(shares.max() / (1 - none))
        right.append(shares.argmax() == 0)
    assert np.mean(sure) == pytest.approx(np.mean(right), abs=0.05)


def test_the_same_seed_is_the_same_fit_and_long_lists_are_cut() -> None:
    cosines, truth = made_up(0.1, 0.05)
    assert fit(cosines, truth, 4, 0) == fit(cosines, truth, 4, 0) != fit(cosines, truth, 4, 1)
    assert fit(cosines, truth, 99, 0) == fit(cosines, truth, 11, 0)
    assert np.isfinite(fit(cosines, truth, 1, 0).weights).all()  # without a second there is no lead


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9), st.floats(1e-3, 1.0), st.floats(-900, 900))
def test_probabilities_add_up(cosines: list[float], temperature: float, slope: float) -> None:
    scale = Calibration(temperature, (slope, -slope, 3.0), 0.5, 10, 2)
    shares, none = scale.probabilities(np.array(cosines, np.float32))
    assert shares.sum() + none == pytest.approx(1) and (shares >= 0).all() and 0 <= none <= 1


# ---- lists of classes


def test_lists_of_classes(tmp_path: Path) -> None:
    assert parse_classes(None, ["a", "b"]) == ["a", "b"]
    assert parse_classes(" chair, night  stand,,", []) == ["chair", "night stand"]
    (tmp_path / "names.txt").write_text("chair\n\ntable\n")
    assert parse_classes(str(tmp_path / "names.txt"), []) == ["chair", "table"]


@pytest.mark.parametrize(
    ("given_", "said"),
    [("", "names no class"), (" , ", "names no class"), ("a,b,a", "'a' stands there twice"),
     ("no/such.txt", "no such list of classes"), ("none.txt", "no such list of classes")],
)  # fmt: skip
def test_what_is_no_list_of_classes(given_: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_classes(given_, [])


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text"):
        parse_classes(str(tmp_path / "names.txt"), [])


# ---- on a store


def test_classes_are_those_of_zero_shot_probing(probed_run: Path, small_store: Path) -> None:
    from recon.trainer.evaluate.zero_shot import class_embeddings

    beside = load_student(probed_run, CPU).on(FeatureStore.open(small_store))
    space, data = text_space(probed_run, beside), beside.split("test")
    found = class_vectors(probed_run, beside, space, data.categories, None)
    expected = class_embeddings(beside.store.text(None, beside.ref), data.numbers).numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1)[:, None], rtol=1e-4, atol=1e-6)


def test_too_few_shapes_to_calibrate_on(probed_run: Path, small_store: Path) -> None:
    student = load_student(probed_run, CPU)
    beside = student.on(FeatureStore.open(small_store))
    with pytest.raises(UserError, match="split 'test' has 3 shapes of 3 categories, too few"):
        calibrate(probed_run, student, beside, text_space(probed_run, beside), None, 2)


@pytest.mark.slow
def test_a_file_is_named(
    own_run: Path, small_store: Path, clip_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "own.npy", np.asarray(FeatureStore.open(small_store).points().xyz[3]))
    words = ["classify", str(tmp_path / "own.npy"), "--run", str(own_run), "--store", str(small_store)]
    words += ["--split", "train+test"]
    told = []
    for again in (False, True):  # the second time from an index
        succeeds("recon-train", *words, "--json")
        told.append(json.loads(capsys.readouterr().out))
        if not again:
            succeeds("recon-train", "index", *words[2:6])
            capsys.readouterr()
    assert [each["name"] for each in told[0]["classes"]] == [each["name"] for each in told[1]["classes"]]
    assert sum(each["probability"] for each in told[0]["classes"]) + told[0]["none"] == pytest.approx(1)
    assert told[0]["none"] == pytest.approx(told[1]["none"], abs=1e-3)
    assert told[0]["calibration"]["num_shapes"] == 12
    new = ["--classes", "spoon,mug", "--weights", str(clip_config.parent)]
    succeeds("recon-train", *words, *new)
    shown = capsys.readouterr()
    assert "calibrated on 12 test shapes of 3 categories" in shown.err and "as NPY files do not say" in shown.err
    assert {line.split("%")[1].strip() for line in shown.out.splitlines()} == {"spoon", "mug", "none of these"}
    assert "'text' is not at hand" in refused(capsys, *words, "--classes", "fork", "--weights", str(tmp_path))
    assert "no such list of classes" in refused(capsys, *words, "--classes", "none.txt")
