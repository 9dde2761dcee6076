"""A fit that is killed at one of its commit points and resumed ends as one that was not."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from finetune.training.checkpoints import ENTRY, read_content
from finetune.training.phases import probe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
FIT = {"epochs": 2, "lr": 3e-3, "label_smoothing": 0.1, "data": {"val_fraction": 0.4}}


class Killed(BaseException):
    """Nothing of ours catches it."""


class Kill:
    """Lets so many renames and removals of checkpoints in a folder happen, and then none."""

    def __init__(self, folder, after):
        self.folder, self.after, self.names = Path(folder), after, []

    def install(self, monkeypatch):
        for name in ("replace", "unlink"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))
        return self

    def _watched(self, act):
        def watched(*paths, **options):
            path = Path(os.fspath(paths[-1]))
            if path.parent == self.folder and not path.name.startswith("."):
                if len(self.names) == self.after:
                    raise Killed
                self.names.append(path.name)
            return act(*paths, **options)

        return watched


def content_of(folder):
    """What each checkpoint holds."""
    return {path.name: read_content(path)[ENTRY]["checksums"] for path in folder.glob("*.ckpt")}


def at_most(commits, run, colour_folder, folder, strategy, **settings):
    """A fit that is killed after so many commits, if there are as many."""
    with pytest.MonkeyPatch.context() as patched:
        kill = Kill(folder, commits).install(patched)
        with suppress(Killed):
            run(colour_folder, folder, strategy, **settings)
    return kill.names


@pytest.fixture(params=["kept beside", "delivered"], scope="module")
def whole(request, run, colour_folder, tmp_path_factory):
    """An undisturbed fit whose second phase wins or not, and the settings of both."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "delivered":
            fit_probe = probe.fit_probe
            weak = lambda *args, **options: fit_probe(*args, **{**options, "l2": 1e5})  # noqa: E731
            patched.setattr(probe, "fit_probe", weak)
        folder = tmp_path_factory.mktemp("whole")
        names = at_most(99, run, colour_folder, folder, "partial:1", **FIT)
        assert (folder / "phase2.ckpt").exists() is (request.param == "kept beside")
        yield folder, names


@pytest.mark.parametrize("back", range(1, 7) if "TORTURE" in os.environ else (1, 2))
def test_every_commit_point_is_a_place_to_go_on_from(back, whole, run, colour_folder, tmp_path):
    undisturbed, names = whole
    part = tmp_path / "part"
    done = at_most(len(names) - back, run, colour_folder, part, "partial:1", **FIT)
    assert done == names[: len(names) - back]
    moved = part.rename(tmp_path / "moved")  # nothing in it is an absolute path
    last = moved / "last.ckpt"  # or the beginning
    run(colour_folder, moved, "partial:1", resume=last if last.is_file() else None, **FIT)
    assert content_of(moved) == content_of(undisturbed)


def test_a_finished_fit_is_not_changed_by_going_on(whole, run, colour_folder):
    folder, _ = whole
    before = {path: path.read_bytes() for path in folder.iterdir()}
    fit, _, said = run(colour_folder, folder, "partial:1", resume=folder / "last.ckpt", **FIT)
    assert said == []
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    best = read_content(folder / "best.ckpt")["state_dict"]
    assert all((value == best[name]).all() for name, value in fit.classifier.state_dict().items())


def test_a_fit_that_stopped_early_is_not_trained_on(run, colour_folder, tmp_path):
    settings = {"epochs": 12, "lr": 0.2, "fit_options": {"patience": 1}}
    folder = tmp_path / "whole"
    names = at_most(99, run, colour_folder, folder, "partial:1", **settings)
    assert read_content(folder / "last.ckpt")[ENTRY]["fit"]["stopped"] is True
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run(colour_folder, folder, "partial:1", resume=folder / "last.ckpt", **settings)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    part = tmp_path / "part"  # killed between the last epoch and the end of the phase
    at_most(len(names) - 1, run, colour_folder, part, "partial:1", **settings)
    run(colour_folder, part, "partial:1", resume=part / "last.ckpt", **settings)
    assert content_of(part) == content_of(folder)
