"""A user that the system knows by number alone, as containers have: no passwd entry, no HOME."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMELESS = """
import pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
import recon
"""
NAMES = {"LOGNAME", "USER", "LNAME", "USERNAME", "HOME"}


def run(code: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in NAMES} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", NAMELESS + code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_has_a_name_of_its_number():
    assert run("import getpass; print(getpass.getuser())").strip() == f"uid{os.getuid()}"


@pytest.mark.slow
def test_what_torch_imports_last_is_imported():
    assert run("import torch._dynamo; print('there')").strip() == "there"
