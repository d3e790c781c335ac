"""The commands on a store, as a user types them: what they print, how they exit, what they refuse."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from recon.pipeline.commands import cli
from recon.pipeline.store import FeatureStore

pytestmark = pytest.mark.slow  # whole stores are made


@pytest.fixture
def own(small_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_store, tmp_path / "s.zarr", ignore=shutil.ignore_patterns("cache"))
    return tmp_path / "s.zarr"


class Shell:
    """Runs `recon-pipeline` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str | Path) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        self.capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["recon-pipeline", *map(str, words)])
            with pytest.raises(SystemExit) as exit_:
                cli.main()
        output = self.capsys.readouterr()
        return int(exit_.value.code or 0), output.out, output.err

    def json(self, *words: str | Path, status: int = 0) -> Any:
        code, out, err = self(*words, "--json")
        assert code == status, err
        return json.loads(out)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_ls_and_digest_tell_of_every_key(own: Path, shell: Shell) -> None:
    keys = [key for _, key in FeatureStore.open(own).list_keys()]
    assert [line["key"] for line in shell.json("ls", own)] == keys
    lines = shell.json("digest", own)
    assert {line["key"]: line["digest"] for line in lines} == {key: FeatureStore.open(own).digest(key) for key in keys}
    points = FeatureStore.open(own).points().key
    assert shell("digest", own, "--key", "points")[1].endswith(f"  points/{points}\n")
    assert shell("digest", own, "--key", points[:6])[1].endswith(f"  points/{points}\n")


@pytest.mark.parametrize(
    "command", ["ls", "stats", "digest", "verify", "diff", "gc", "plan", "status", "preview", "export"]
)
def test_answers_are_alone_on_standard_output(
    own: Path, small_manifest: Path, tmp_path: Path, shell: Shell, command: str
) -> None:
    """So that `| less` and `> file` get them, and `--json` a document that parses."""
    words: dict[str, tuple[str | Path, ...]] = {
        "diff": (own, own),
        "plan": ("-m", small_manifest, "-s", own),
        "status": ("-m", small_manifest, "-s", own),
        "preview": (own, tmp_path / "sheets"),
        "export": (own, tmp_path / "arrays"),
    }
    status, out, err = shell(command, *words.get(command, (own,)))
    assert (status, err) == (0, "")
    assert out.strip()
    if command == "export":  # not twice into one folder
        shutil.rmtree(tmp_path / "arrays")
    code, document, err = shell(command, *words.get(command, (own,)), "--json")
    assert (code, err) == (0, "")
    json.loads(document)


def test_verify_says_what_is_damaged_and_retry_mends_it(own: Path, small_manifest: Path, shell: Shell) -> None:
    before = shell.json("digest", own)
    assert shell.json("verify", own, "--full")["damages"] == []
    key = FeatureStore.open(own).points().key
    path = own / "points" / key / "xyz" / "c" / "0" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert shell("verify", own)[0] == 0  # a quick look does not read data
    status, out, err = shell("verify", own, "--full")
    assert (status, err) == (1, "")
    assert f"points/{key}/xyz/c/0/0/0" in out
    assert shell("retry", "-m", small_manifest, "-s", own, "--workers", "0")[0] == 0
    assert shell("verify", own, "--full")[0] == 0
    assert shell.json("digest", own) == before


def test_verify_computes_random_rows_again(own: Path, small_manifest: Path, shell: Shell) -> None:
    report = shell.json("verify", own, "--recompute", "2", "-m", small_manifest)
    assert {line["stage"] for line in report["recomputed"]} == {
        "meshes", "points", "views", "captions facts", "targets tiny", "text tiny",
    }  # fmt: skip
    assert all(line["equal"] for line in report["recomputed"])


def test_plan_says_why_and_status_is_quiet(own: Path, small_manifest: Path, tmp_path: Path, shell: Shell) -> None:
    assert shell("plan", "-m", small_manifest, "-s", own, "--quiet")[0] == 0
    assert shell("plan", "-m", small_manifest, "-s", own) == (0, "nothing to do\n", "")
    other = tmp_path / "other.toml"
    text = small_manifest.read_text().replace("resolution = 32", "resolution = 48")
    other.write_text(text.replace("shapes_per_category = 4", "shapes_per_category = 5"))
    assert shell("status", "-m", other, "-s", own, "--quiet") == (4, "", "")
    lines = {line["stage"]: line for line in shell.json("plan", "-m", other, "-s", own)}
    assert (lines["meshes"]["done"], lines["meshes"]["missing"]) == (12, 3)
    assert (lines["points"]["done"], lines["points"]["missing"]) == (12, 3)
    assert (lines["views"]["done"], lines["views"]["missing"]) == (0, 15)
    views = FeatureStore.open(own).views().key
    assert f"differs from {views}: render.resolution: 32 -> 48" in lines["views"]["why"]
    assert any("views.render.resolution: 32 -> 48" in why for why in lines["targets tiny"]["why"])
    assert lines["views"]["bytes_to_come"] > 0


def test_a_run_that_would_outgrow_its_limit_is_refused(tmp_path: Path, small_manifest: Path, shell: Shell) -> None:
    words = ("all", "-m", small_manifest, "-s", tmp_path / "s.zarr", "--workers", "0")
    status, _, err = shell(*words, "--max-gb", "0.00001")
    assert status == 1
    assert "--max-gb" in err
    assert not (tmp_path / "s.zarr" / "points").exists()
    assert shell(*words, "--max-gb", "1")[0] == 0


def test_parts_are_merged_to_the_whole(own: Path, small_manifest: Path, tmp_path: Path, shell: Shell) -> None:
    for part in range(2):
        words = ("-m", small_manifest, "-s", tmp_path / f"{part}.zarr", "--workers", "0", "--shard", f"{part}/2")
        assert shell("all", *words)[0] == 0
    assert shell.json("merge", tmp_path / "whole.zarr", tmp_path / "0.zarr", tmp_path / "1.zarr")["shapes"] == 12
    assert shell.json("digest", tmp_path / "whole.zarr") == shell.json("digest", own)
    assert all(pair["same"] for pair in shell.json("diff", tmp_path / "whole.zarr", own))
    assert shell("verify", tmp_path / "whole.zarr", "--full")[0] == 0
    assert shell("plan", "-m", small_manifest, "-s", tmp_path / "whole.zarr", "--quiet")[0] == 0


def test_gc_is_dry_until_told(own: Path, small_manifest: Path, tmp_path: Path, shell: Shell) -> None:
    other = tmp_path / "other.toml"
    other.write_text(small_manifest.read_text().replace("num_points = 256", "num_points = 128"))
    old = FeatureStore.open(own).points().key
    assert shell("sample", "-m", other, "-s", own, "--workers", "0")[0] == 0
    found = shell.json("gc", own, "--grace-days", "0")
    assert [item["key"] for item in found["items"] if item["key"]] == [old]
    assert (own / "points" / old).is_dir()
    assert shell.json("gc", own)["items"] == []  # younger than the week that is usual
    assert shell("gc", own, "--grace-days", "0", "--delete")[0] == 0
    assert not (own / "points" / old).exists()
    assert shell("verify", own, "--full")[0] == 0


def test_what_leaves_the_store(own: Path, tmp_path: Path, shell: Shell) -> None:
    result = shell.json("export", own, tmp_path / "out", "--format", "safetensors", "--split", "test")
    assert result["rows"] == 3
    assert all((tmp_path / "out" / name).is_file() for name in result["files"])
    assert shell.json("preview", own, tmp_path / "sheets")["shapes"] == 12
    assert shell.json("stats", own)["ref"] == "small"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ls", "{path}/none.zarr"), "no feature store"),
        (("ls", "{path}/foreign.zarr"), "no feature store"),
        (("verify", "{path}/newer.zarr"), "version 99"),
        (("gc", "{path}/foreign.zarr", "--delete"), "no feature store"),
        (("digest", "{store}", "--key", "../../etc"), "is no key"),
        (("digest", "{store}", "--key", "pionts"), "did you mean points"),
        (("diff", "{store}:points", "{store}:views"), "cannot be compared"),
        (("stats", "{store}", "--ref", "smal"), "small"),
        (("stats", "{path}/empty.zarr"), "no finished stage"),
        (("export", "{store}", "{path}/full"), "full"),
        (("merge", "{path}/full", "{store}"), "full"),
        (("merge", "{path}/m.zarr", "{store}", "{store}"), "{store}"),
        (("verify", "{store}", "--recompute", "1"), "--manifest"),
        (("all", "-m", "{manifest}", "-s", "{store}", "--shard", "3/3"), "--shard 3/3"),
        (("all", "-m", "{manifest}", "-s", "{store}", "--scheduler", "tcp://x:1", "--cluster", "local"), "--cluster"),
    ],
)
def test_bad_input_is_one_line(
    own: Path, small_manifest: Path, tmp_path: Path, shell: Shell, words: tuple[str, ...], message: str
) -> None:
    import zarr

    zarr.create_group(str(tmp_path / "foreign.zarr"), attributes={"a": 1})
    zarr.create_group(str(tmp_path / "newer.zarr"), attributes={"format": "recon-store", "version": 99})
    FeatureStore.create(tmp_path / "empty.zarr")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    names = {"path": str(tmp_path), "store": str(own), "manifest": str(small_manifest)}
    status, out, err = shell(*(word.format(**names) for word in words))
    assert status == 1
    assert out == ""
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, err
    assert message.format(**names) in err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
