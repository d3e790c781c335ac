"""What is installed stands under one name, `recon`, beside whatever others have installed under our former names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # models, wheels and processes are made

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("data_manifests", "kernels", "pipeline", "trainer")
FORMER = ("pipeline", "trainer", "kernels")
SETUPTOOLS = 77  # the first to know the licence as pyproject.toml states it


def run(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in `cwd`, which sees nothing of this checkout but what `environment` names."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )


def foreign_package(folder: Path, name: str) -> None:
    """Another project's package, as installed: it can be told from ours, and does not work in ours' place."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("whose = 'another project'\n")
    (folder / name / "layer.py").write_text("")
    info = folder / f"{name}-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n")


@pytest.mark.parametrize("name", FORMER)
@pytest.mark.parametrize("statement", ["import {}.store", "from {}.data import load", "from {} import knn_points"])
def test_a_former_name_says_the_new_one(name: str, statement: str) -> None:
    done = run(sys.executable, "-c", statement.format(name), cwd=ROOT)
    assert done.returncode == 1
    line = f"ImportError: no module {name!r} any more: it is recon.{name} (from recon.{name} import ...)"
    assert done.stderr.splitlines()[-1] == line


def test_the_kernels_folder_does_not_stop_who_asks_for_a_package_of_its_name() -> None:
    code = "import kernels; assert kernels.__file__ and not hasattr(kernels, '__version__')"
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FORMER)
def test_in_a_checkout_another_projects_package_is_what_its_users_get(tmp_path: Path, name: str) -> None:
    foreign_package(tmp_path, name)
    code = f"import {name}.layer, sys; assert {name}.whose == 'another project'; assert sys.path[0] == ''"
    done = run(sys.executable, "-c", code, cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_two_checkouts_on_the_path_are_none_of_another_project(tmp_path: Path) -> None:
    for folder in ("kernels", "pipeline", "recon", "data_manifests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    (tmp_path / "trainer").mkdir()  # what a link needs
    done = run(sys.executable, "-c", "import pipeline", cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert done.stderr.splitlines()[-1].startswith("ImportError: no module 'pipeline' any more")


@pytest.mark.slow
def test_a_checkout_works_without_being_installed() -> None:
    code = (
        "import recon; from recon import FeatureStore, load_manifest, load_model; recon.kernels.knn_points\n"
        "assert load_manifest('demo').name == 'demo'; print(recon.__file__)"
    )
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"{ROOT / 'recon' / '__init__.py'}\n"), done.stderr


@pytest.mark.parametrize("lost", FOLDERS)
def test_a_checkout_that_lost_its_links_says_how_to_get_them_back(tmp_path: Path, lost: str) -> None:
    (tmp_path / "recon").mkdir()
    shutil.copy(ROOT / "recon" / "__init__.py", tmp_path / "recon")
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / "recon" / folder).symlink_to(Path("..") / folder)
    (tmp_path / "recon" / lost).unlink()
    (tmp_path / "recon" / lost).write_text(f"../{lost}")  # as git checks a link out where it may not make one
    done = run(sys.executable, "-c", "import recon", cwd=tmp_path)
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"ImportError: {tmp_path / 'recon' / lost} should be a link to the folder ../{lost}")
    assert "git config core.symlinks true" in line


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy of the checkout: a build folder left in the checkout would go into it."""
    try:
        version = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        version = "0"
    if int(version.partition(".")[0]) < SETUPTOOLS:
        pytest.skip(f"building a wheel needs setuptools {SETUPTOOLS} or newer; here it is {version}")
    place = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "stores", "runs")
    shutil.copytree(ROOT, place / "checkout", symlinks=True, ignore=left_out)
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", place)
    done = run(sys.executable, "-m", "pip", "wheel", *offline, place / "checkout", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = place.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_four_folders_and_nothing_beside_them(wheel: Path) -> None:
    files = {
        f"recon/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == files | {"recon/__init__.py", "recon/former_names.py"}
    assert wheel.name.startswith("recon_pointcloud-")


@pytest.mark.slow
def test_the_wheel_works_beside_packages_of_our_former_names(wheel: Path, tmp_path: Path) -> None:
    venv, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    assert run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path).returncode == 0
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    # The dependencies of this environment, behind what the new one has itself; its own .pth files are not read there.
    here = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(here))
    for name in FORMER:
        foreign_package(site, name)
    python = venv / "bin" / "python"
    done = run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed"),
        wheel,
        cwd=empty,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    words = ("all", "--manifest", "demo", "--limit", "2", "--store", "demo.zarr", "--workers", "1")
    done = run(venv / "bin" / "recon-pipeline", *words, cwd=empty)
    assert done.returncode == 0, done.stderr
    code = (
        "import kernels, pipeline, trainer, recon.kernels, recon.trainer.model.recon, recon.trainer.cli\n"
        "from recon import FeatureStore, load_model\n"
        "from recon.trainer.recipe import load_config\n"
        "assert load_config('demo').model\n"
        "assert kernels.whose == pipeline.whose == trainer.whose == 'another project'\n"
        "print(FeatureStore.open('demo.zarr').targets().feat.shape[1], recon.__file__)"
    )
    done = run(python, "-c", code, cwd=empty)
    assert (done.returncode, done.stdout) == (0, f"2 {site / 'recon' / '__init__.py'}\n"), done.stderr
