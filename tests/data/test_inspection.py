from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from finetune.data import inspection
from finetune.data.inspection import Inspection, inspect_files


def test_ctrl_c_does_not_wait_for_what_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, stopped = [], Event()

    def slowly(path: Path, **_: object) -> Inspection:
        begun.append(path)
        if len(begun) > 1:
            stopped.wait(timeout=0.1)
        return Inspection(path)

    def stop(inspections: Iterator[Inspection], *_: object) -> Iterator[Inspection]:
        yield next(inspections)
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "inspect_file", slowly)
    monkeypatch.setattr(inspection, "told", stop)
    paths = [tmp_path / str(number) for number in range(300)]
    with pytest.raises(KeyboardInterrupt):
        inspect_files(paths, root=tmp_path, remember=False)
    assert len(begun) < 100
