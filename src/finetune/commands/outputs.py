"""One rule for every file and folder that a verb is told to write: nothing of the user's is lost.

The ending says what is written; the folder is there; what exists stays without ``--overwrite``; and
never, also with it, is something written over what is read, among the images, or through a link.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from finetune.commands.verb import Typed
from finetune.errors import UsageError
from finetune.extras import need
from finetune.files import atomic_folder, atomic_write

if TYPE_CHECKING:
    from finetune.spec.splits import SplitRecord

CHECKPOINTS, FIGURES, PAGES, TABLES = (".ckpt",), (".png",), (".html", ".htm"), (".csv",)
# In a run folder, what a fit or a test has found; pages and figures beside it can be drawn again.
RECORDS = ("checkpoints/*", "*.yaml", "*.json", "*split.csv", "metrics.csv", "*predictions.csv")

OptionalPath = str | os.PathLike[str] | None
# What verbs write, as it is typed; a function may be asked to write nothing.
CheckpointFile = Annotated[OptionalPath, Typed(metavar="FILE.ckpt", required=True)]
TableFile = Annotated[OptionalPath, Typed(metavar="FILE.csv", required=True)]
PageFile = Annotated[OptionalPath, Typed(metavar="FILE.html")]


@dataclass(frozen=True, slots=True)
class Output:
    """A place to write to that has passed the rule.

    Attributes:
        path: as it was given.
        option: that gave it, for messages.
        replaces: whether a file that is there, now or when all work is done, may be replaced.
        is_folder: whether a folder is written; of one that is there other files stay.
    """

    path: Path
    option: str
    replaces: bool
    is_folder: bool = False

    def keep_off(
        self,
        *,
        inputs: Iterable[OptionalPath] = (),
        images: Iterable[OptionalPath] = (),
        fits: Iterable[SplitRecord] = (),
    ) -> None:
        """Refuse a place that is among what is read.

        Args:
            inputs: files and run folders that are read, as far as given.
            images: folders of images, as far as given; nothing is written below them.
            fits: how fits split their images; nor is it where these lie.

        Raises:
            UsageError: it is one of them, or below.
        """
        if os.path.exists(self.path):
            for path in _files_of(inputs):
                if os.path.exists(path) and os.path.samefile(path, self.path):
                    self._refuse("a place beside what is read", f"{path}, which is read")
        within = self.path.absolute() if self.is_folder else self.path.absolute().parent
        within = Path(os.path.realpath(within))
        fits = list(fits)
        given = chain(images, _fitted_roots(fits))
        folders = {_identity(folder): folder for folder in given if folder is not None}
        for parent in (within, *within.parents):
            if (found := folders.get(_identity(parent))) is not None and os.path.isdir(parent):
                self._refuse("a place outside the images", f"it below {found}")
            if any(_holds_images(parent, fit) for fit in fits):
                self._refuse("a place outside the images", f"it below {parent}, which a fit read")

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A path beside, which takes the place if the block ends well.

        Raises:
            OutputError: it cannot be written, or somebody has written there meanwhile.
        """
        publish = atomic_folder if self.is_folder else atomic_write
        with publish(self.path, exclusive=not self.replaces) as beside:
            yield beside

    def _refuse(self, expected: str, found: str) -> None:
        raise UsageError(
            f"Expected {self.option} {self.path} to be {expected}, found {found}; name another."
        )


def default_output(default: str, output: OptionalPath, *, overwrite: bool) -> str:
    """``--output``, or the default name; where that is taken ``name-2``, ``name-3``, ..."""
    if output is not None or overwrite:
        return os.fspath(output or default)
    first = Path(default)
    later = (first.with_stem(f"{first.stem}-{number}") for number in count(2))
    return next(str(path) for path in chain([first], later) if not os.path.lexists(path))


def checked_output(
    path: str | os.PathLike[str],
    *,
    endings: Sequence[str],
    overwrite: bool,
    option: str = "--output",
    inputs: Iterable[OptionalPath] = (),
    images: Iterable[OptionalPath] = (),
    is_ours: Callable[[Path], bool] | None = None,
    hint: str = "",
) -> Output:
    """The place to write to, refused before any work if it cannot be.

    Args:
        path: as given.
        endings: one of which it must have, in any case; of a folder none.
        overwrite: whether what is there may be replaced.
        option: that gave the path, for messages.
        inputs, images: see :meth:`Output.keep_off`.
        is_ours: tells of a file that is there whether it may be replaced without ``--overwrite``.
        hint: a further way out where something is there.

    Raises:
        UsageError: the place breaks the rule.
    """
    path = Path(path)
    if endings and path.suffix.lower() not in endings:
        raise UsageError(
            f"Expected {option} to end in {' or '.join(endings)}, found {path.name!r}; rename it."
        )
    if {*PAGES, *FIGURES} & {*endings}:
        need("report", f"{option} {path.name}")
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"Expected a folder to write {path.name} into, found no {path.parent}; create it."
        )
    ours = is_ours is not None and path.is_file() and is_ours(path)
    output = Output(path, option, overwrite or ours, is_folder=not endings)
    if path.is_symlink():
        output._refuse("a place of its own", f"a link to {os.readlink(path)}")
    output.keep_off(inputs=inputs, images=images)
    fits = path.is_file() if endings else path.is_dir()
    if os.path.lexists(path) and not fits:
        output._refuse("a file" if endings else "a folder", "something else there")
    if os.path.lexists(path) and not output.replaces:
        raise UsageError(
            f"Expected nothing yet at {path}, found a {'file' if endings else 'folder'}; name "
            f"another {option}, {hint}or replace it with --overwrite."
        )
    return output


def wanted_output(path: OptionalPath, **rule: Any) -> Output | None:
    """As :func:`checked_output`; None where nothing is to be written, which Python may ask for."""
    return None if path is None else checked_output(path, **rule)


def _fitted_roots(fits: Iterable[SplitRecord]) -> list[str]:
    """The folders of images that old checkpoints tell, as far as they lie where they lay."""
    roots = {str(fit.settings["root"]) for fit in fits if fit.settings.get("root")}
    # A relative root was said elsewhere: what is called so here is believed unless we are in it.
    here = Path.cwd().resolve()
    return [r for r in roots if os.path.isabs(r) or not here.is_relative_to(Path(r).resolve())]


def _holds_images(folder: Path, fit: SplitRecord) -> bool:
    """Whether images of a fit lie below a folder as they lay below its root; looks at some."""
    some = fit.images[:: max(1, len(fit.images) // 8)]
    return any((folder / image.path).is_file() for image in some)


def _is_run(folder: str | os.PathLike[str]) -> bool:
    return any(os.path.exists(Path(folder, n)) for n in ("checkpoints", "members.json", "report"))


def _files_of(inputs: Iterable[OptionalPath]) -> Iterator[Path]:
    for path in (Path(each) for each in inputs if each is not None):
        if not path.is_dir():
            yield path
        elif _is_run(path):
            for pattern in RECORDS:
                yield from path.glob(pattern)
                yield from path.glob(f"*/{pattern}")


def _identity(path: str | os.PathLike[str]) -> Any:
    """What tells a folder from all others, however it is spelled."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path)
    return status.st_dev, status.st_ino
