"""What stands in several files of the project says the same in all of them."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from finetune.distribution import DISTRIBUTION, own_version
from finetune.extras import remedy

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOLD = [
    *PROSE,
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "configs").rglob("*.yaml")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]


def steps(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_workflow_runs_what_ci_runs() -> None:
    local = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert steps("check") == [line for line in local if line.startswith("make ")]


def test_every_make_target_that_is_named_exists() -> None:
    called = {run for job in WORKFLOW["jobs"] for run in steps(job) if run.startswith("make ")}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    called |= {hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]}
    for path in PROSE:
        called |= set(
            re.findall(r"^make [a-z-]+|(?<=`)make [a-z-]+", path.read_text("utf-8"), re.M)
        )
    for call in called:
        make, *targets = call.split()
        assert make == "make", call
        assert set(targets) <= TARGETS, call
    (phony,) = re.findall(r"^\.PHONY: ((?:.|\\\n)*?[^\\])\n", MAKEFILE, re.MULTILINE)
    assert set(phony.replace("\\\n", " ").split()) == TARGETS


def test_every_file_that_contributors_are_sent_to_exists() -> None:
    """By its place in the repository, or in the package."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for place in re.findall(r"`([\w/]+(?:\.py|/))`", text):
        assert (ROOT / place).exists() or (ROOT / "src/finetune" / place).exists(), place


def test_windows_which_has_no_make_runs_the_same_tests() -> None:
    (recipe,) = re.findall(r"^PYTEST := (.*)$", MAKEFILE, re.MULTILINE)
    environment = dict(re.findall(r"([A-Z_]+)=(\S+)", recipe))
    step = WORKFLOW["jobs"]["other-systems"]["steps"][-1]
    assert step["run"] == recipe[recipe.index("-m pytest") :].replace("-m", "python -m", 1)
    assert step["env"] == environment


def test_every_python_that_is_promised_is_tried() -> None:
    promised = [
        name.rpartition(" ")[2]
        for name in PROJECT["classifiers"]
        if re.search(r"Python :: 3\.\d+$", name)
    ]
    assert WORKFLOW["jobs"]["check"]["strategy"]["matrix"]["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == promised[0]


def test_one_name_and_extras_that_exist() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert re.fullmatch(r"run `pip install '[a-z-]+\[export]'`", remedy("export"))
    own = [need for extra in EXTRAS.values() for need in extra if need.startswith("finetune")]
    assert own
    for need in own:
        name, _, extras = need.removesuffix("]").partition("[")
        assert name == DISTRIBUTION
        assert set(extras.split(",")) <= set(EXTRAS)


@pytest.mark.parametrize("path", TOLD, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_is_told_to_install_what_is_not_ours(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for extras in re.findall(r"finetune(?:-images)?\[([a-z,]+)\]", text):
        assert set(extras.split(",")) <= set(EXTRAS)
    for extra in re.findall(r"remedy\(['\"]([a-z]+)['\"]\)", text):
        assert extra in EXTRAS
    if path.name in ("distribution.py", "extras.py"):
        return
    assert not re.search(r"pip install (-U |--upgrade )?['\"]?finetune(?!-images)", text)
    if path.suffix == ".py":
        assert "pip install '" not in text, "extras.remedy says it"


def test_the_version_is_that_of_the_installed_package() -> None:
    assert re.match(r"\d+\.\d+", own_version())
    assert "version" in PROJECT["dynamic"]
