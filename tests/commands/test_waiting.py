"""How threads wait is decided before torch is loaded, and never against the user's word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.commands import waiting

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)


def settings() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(
    ("busy", "expected"),
    [(True, {"OMP_WAIT_POLICY": "PASSIVE"}), (False, {"GOMP_SPINCOUNT": waiting.SHORT_SPIN})],
)
def test_threads_sleep_at_once_where_others_run(
    busy: bool, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "machine_is_busy", lambda: busy)
    waiting.wait_politely()
    assert settings() == expected


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_has_set_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "ACTIVE")
    waiting.wait_politely(always=True)
    assert settings() == {name: "ACTIVE"}


@pytest.mark.parametrize(
    ("running", "average", "busy"), [("1/90", 0.1, False), ("3/90", 0.1, True), ("1/90", 2, True)]
)
def test_a_machine_is_busy_by_what_runs(
    running: str, average: float, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: f"0.1 0.1 0.1 {running} 77")
    monkeypatch.setattr(os, "getloadavg", lambda: (average, 0, 0))
    assert waiting.machine_is_busy() == busy


def test_it_is_settled_before_torch_is_loaded() -> None:
    program = (
        "import os, sys\n"
        "from finetune import cli\n"
        "import finetune.commands.sample as verb\n"
        "def main(arguments):\n"
        "    print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY') or"
        " os.environ.get('GOMP_SPINCOUNT'))\n"
        "    return 0\n"
        "verb.main = main\n"
        "cli.main(['sample'])\n"
    )
    clean = {key: value for key, value in os.environ.items() if key not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True
    )
    loaded, setting = done.stdout.split()
    assert loaded == "False"
    assert setting in ("PASSIVE", waiting.SHORT_SPIN)
