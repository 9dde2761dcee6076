"""The page as text: escaped, bounded, complete, readable."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from finetune.evaluation.comparison import compare_all
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.result import Evaluation
from finetune.reporting import page as page_module
from finetune.reporting.drawings import NAMES
from finetune.reporting.page import TEMPLATES, PageSection, flatten, render_page
from finetune.reporting.report import ReportDetails, report_files, write_page, write_report
from finetune.reporting.thumbnails import read_thumbnail, thumbnail_uris
from finetune.tables.reading import read_table

EVIL = "</script><script>alert(1)</script>"
Make = Callable[..., Evaluation]


class Tags(HTMLParser):
    """Opening tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, kind: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == kind]


def test_strangers_names_stay_text_everywhere(make_evaluation: Make) -> None:
    evaluation = make_evaluation(20, [EVIL, '"><img src=x onerror=alert(1)>'], [EVIL] * 20)
    finding = SimpleNamespace(path=EVIL, problem=EVIL, remedy=EVIL)
    section = PageSection(
        EVIL,
        evaluation,
        ReportDetails(
            stage=EVIL,
            settings={EVIL: {"x": EVIL}},
            findings=[finding],
            environment={"python": EVIL},
            class_counts={EVIL: {EVIL: 3, "b": 4}},
            commands=[EVIL],
        ),
    )
    text = render_page(EVIL, [section, section])
    tags = Tags(text)
    assert len(tags.of("script")) == 1
    assert tags.of("img") == []
    assert not [a for _, attributes in tags.tags for a in attributes if a.startswith("on")]
    assert text.count("alert(1)") > 20


def test_the_policy_allows_exactly_what_the_page_brings(make_evaluation: Make) -> None:
    text = render_page("t", [PageSection("a", make_evaluation(9, ["a", "b"]))])
    policy = next(meta["content"] for meta in Tags(text).of("meta") if "http-equiv" in meta)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [a for _, attributes in Tags(text).tags for a in attributes if a == "style"]


def test_a_report_folder_is_complete(
    tmp_path: Path, image_folder: Path, make_evaluation: Make
) -> None:
    paths = [f"{i:02d}.png" for i in range(30)]
    evaluation = make_evaluation(30, ["ant", "bee", "wasp"], paths)
    rng = np.random.default_rng(0)
    page = write_report(
        tmp_path / "run" / "report",
        evaluation,
        title="Wasps",
        root=image_folder,
        learning_curves={"val/loss": [(0, 1.0), (1, 0.5)], "lr-AdamW": [(0, 1e-3), (1, 1e-4)]},
        settings={"model": {"backbone": "resnet18"}},
        findings=[SimpleNamespace(path="x.png", problem="truncated", remedy="copy it again")],
        embeddings=rng.normal(size=(30, 8)),
    )
    folder = page.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "figures", "index.html", "metrics.json", "per_class.csv", "predictions.csv", "suspects.csv",
    ]  # fmt: skip
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert drawn == set(NAMES) - {
        *("per_label", "most_missed", "co_occurrence", "learning_figure", "learning_curves"),
        *("predicted", "ranges", "residuals"),
    }
    (folder / "mine.png").touch()
    assert sorted(report_files(folder)) == sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != "mine.png"
    )
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["accuracy"] == evaluation.accuracy
    assert read_table(folder / "predictions.csv").paths == evaluation.paths
    text = page.read_text(encoding="utf-8")
    assert "model.backbone" in text
    assert "truncated" in text
    assert f"{100 * evaluation.accuracy:.1f} %" in text
    wrong = int((evaluation.predictions != evaluation.labels).sum())
    cards = [attributes for attributes in Tags(text).of("li") if "data-label" in attributes]
    assert len(cards) == wrong > 0
    assert text.count("data:image/webp;base64,") >= wrong


def test_a_report_replaces_the_older_one_alone_and_leaves_nothing_beside(
    tmp_path: Path, make_evaluation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = make_evaluation(6, ["a", "b"])
    monkeypatch.setattr("finetune.reporting.report.draw_all", lambda *_: [])
    write_report(tmp_path / "report", evaluation)
    (tmp_path / "report" / "mine.txt").write_text("mine")
    (tmp_path / "report" / "figures" / "embedding.png").touch()  # of an older report
    write_report(tmp_path / "report", evaluation)
    assert (tmp_path / "report" / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "report" / "figures" / "embedding.png").exists()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("finetune.reporting.report.write_parts", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path / "report", evaluation)
    assert (tmp_path / "report" / "index.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


QUESTIONS = [
    "How good is it, and on what?",
    "Which classes are hard?",
    "Which errors does it make?",
    "Can I trust how sure it is?",
    "What looks wrong in the data?",
    "How was it trained?",
    "How do I repeat it?",
]


def test_the_page_opens_with_the_answer_and_asks_what_a_reader_asks(
    make_evaluation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = make_evaluation(40, ["a", "b"])
    details = ReportDetails(stage="test", settings={"a": 1}, commands=["finetune fit --config c"])
    section = PageSection("t", evaluation, details)
    text = render_page("t", [section])
    lead = text.index(f'<p class="lead"><bdi>{section.answer.sentences[0]}')
    places = [re.search(rf"<h3[^>]*>{re.escape(each)}</h3>", text) for each in QUESTIONS]
    order = [place.start() for place in places if place is not None]
    assert len(order) == len(QUESTIONS)
    assert [lead, *order] == sorted([lead, *order])
    for each in section.answer.sentences:
        assert text.count(each) == 1
    # What is not known is not asked.
    bare = render_page("t", [PageSection("t", evaluation, ReportDetails(environment={}))])
    assert [each for each in QUESTIONS if f">{each}</h3>" in bare] == QUESTIONS[:5]


def test_figures_of_a_row_are_drawn_in_one_size(
    tmp_path: Path, make_evaluation: Make, image_folder: Path
) -> None:
    """Two in a row, whatever the number of classes and the length of their names."""
    names = ["a", "b" * 40, *(f"class {i}" for i in range(7))]
    evaluation = make_evaluation(60, names)
    curves = {"train/loss": [(0, 1.0)], "val/loss": [(0, 1.0)], "val/accuracy": [(0, 0.5)]}
    page = write_report(tmp_path / "report", evaluation, learning_curves=curves)
    for row in (
        ("per_class", "confusion"),
        ("reliability", "coverage_risk"),
        ("learning_loss", "learning_figure"),
    ):
        drawn = [(page.parent / "figures" / f"{name}.png").read_bytes() for name in row]
        sizes = {Image.open(io.BytesIO(content)).size for content in drawn}
        assert len(sizes) == 1


def test_print_is_light_and_without_what_is_folded(make_evaluation: Make) -> None:
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    _, of_print = css.split("@media print")
    assert re.search(r"details, .*\{ display: none; \}", of_print)
    assert "@media screen and (prefers-color-scheme: dark)" in css
    assert "@media (prefers-color-scheme" not in css
    text = render_page("t", [PageSection("t", make_evaluation(9, ["a", "b"]))])
    assert '(prefers-color-scheme: dark)">' not in text.replace("screen and (prefers", "")


def test_nothing_is_taken_from_elsewhere(make_evaluation: Make) -> None:
    text = render_page("t", [PageSection("t", make_evaluation(20, ["a", "b"]))])
    addresses = [
        value
        for _, attributes in Tags(text).tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "action", "data", "poster")
    ]
    assert [each for each in addresses if each and not each.startswith(("#", "data:image/"))] == []
    assert "url(" not in text
    assert "@import" not in text


def test_several_runs_stand_side_by_side(
    tmp_path: Path, make_evaluation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.reporting.report.draw_all", lambda *_: [])
    evaluations = {f"run {i}": make_evaluation(40, ["a", "b"], seed=0) for i in range(2)}
    page = write_page(
        tmp_path / "page.html",
        {name: (evaluation, ReportDetails()) for name, evaluation in evaluations.items()},
        leaderboard=compare_all(evaluations),
        columns={"run 0": {"parameters": 1_234_567, "seconds": 1.5}},
    )
    text = page.read_text(encoding="utf-8")
    assert "not distinguishable" in text
    assert "1,234,567" in text
    assert [name for name in ("run 0", "run 1") if text.count(f"<bdi>{name}</bdi>") >= 3] == [
        "run 0",
        "run 1",
    ]
    identifiers = [a["id"] for _, a in Tags(text).tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_images_are_bounded(
    image_folder: Path, make_evaluation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(str(path) for path in image_folder.iterdir())
    all_of_them = thumbnail_uris(paths, budget=10_000_000)
    assert list(all_of_them) == paths
    largest = max(map(len, all_of_them.values()))
    few = thumbnail_uris(paths, budget=3 * largest)
    assert 3 <= len(few) <= 4
    monkeypatch.setattr(page_module, "IMAGE_BUDGET", 2 * largest)
    wrong = evaluate(np.zeros(30, dtype=int), np.eye(2)[np.ones(30, dtype=int)], ["a", "b"], paths)
    text = render_page("t", [PageSection("t", wrong)])
    assert text.count("data:image/webp") <= 3
    assert text.count("no image") >= 27


def test_thumbnails_are_upright_squares_and_none_if_unreadable(
    image_folder: Path, tmp_path: Path
) -> None:
    pixels = read_thumbnail(image_folder / "00.png", side=32)
    assert pixels is not None
    assert pixels.shape == (32, 32, 3)
    (tmp_path / "page.jpg").write_text("<html>")
    assert read_thumbnail(tmp_path / "page.jpg") is None
    assert read_thumbnail(tmp_path / "missing.jpg") is None
    assert thumbnail_uris([str(tmp_path / "missing.jpg")], budget=100) == {}


def test_a_perfect_classifier_has_no_gallery() -> None:
    evaluation = evaluate([0, 1], np.eye(2), ["a", "b"])
    assert "every answer is right" in render_page("t", [PageSection("t", evaluation)])


def test_settings_are_flattened() -> None:
    nested = {"data": {"seed": 0, "root": None}, "empty": {}, "list": [1, 2]}
    assert dict(flatten(nested)) == {
        "data.seed": "0",
        "data.root": "None",
        "empty": "{}",
        "list": "[1, 2]",
    }


def luminance(colour: str) -> float:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_all_text_has_enough_contrast_in_both_themes() -> None:
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    themes = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for front in ("text", "muted", "accent", "wrong"):
            for back in ("background", "surface"):
                pair = sorted(luminance(colours[name]) for name in (front, back))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (front, back)
