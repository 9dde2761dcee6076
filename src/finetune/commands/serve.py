"""``finetune serve``: a page to try a checkpoint on, and its answers for other programs."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands import folder_options as options
from finetune.commands.guest import Where
from finetune.commands.outputs import OptionalPath, Output, wanted_output
from finetune.commands.verb import Typed
from finetune.errors import UsageError
from finetune.extras import need
from finetune.spec.schema import whole

if TYPE_CHECKING:
    from finetune.serving.answerers import Model
    from finetune.serving.app import Service
    from finetune.spec.splits import SplitRecord

TOKEN_LETTERS = 16  # at least, of one that people choose


def serve(
    checkpoint: Where,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, whole(0, 65535)] = 8000,
    token: Annotated[str | None, Typed(metavar="TOKEN|new")] = None,
    corrections: Annotated[OptionalPath, Typed(metavar="DIR")] = None,
    root: options.Root = None,
    cache_dir: options.CacheDir = None,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    max_decoding_mb: options.MaxDecodingMb = options.MAX_DECODING_MB,
    accelerator: options.Accelerator = "auto",
) -> None:
    """Serve a page to try a checkpoint on, and POST /predict for programs, until Ctrl-C.

    Images are held in memory while they are answered, and nowhere else.

    Args:
        checkpoint: a .ckpt file or a run folder: classifier, average or ensemble; or an .onnx file
            of finetune export, which onnxruntime answers from, without maps and neighbours.
        host: the address to listen at; any but this machine's own needs --token.
        port: to listen at; 0 takes a free one.
        token: what clients have to know; new draws one and prints it.
        corrections: a folder for images with the label that people say is true, and their manifest.
        root: the images of the fit: clients may then see which training images are most alike.
        cache_dir: instead of the platform's cache folder.
        max_pixels: refuse images with more pixels, at least 1.
        max_decoding_mb: refuse images that take more memory to decode, in MiB.
        accelerator: where networks answer: auto, cpu, gpu, cuda or mps.
    """
    need("serve", "serving a checkpoint")
    from finetune.serving.server import address_of, is_loopback, listening, run

    inside = is_loopback(host)
    token = _checked(token, host, inside=inside)
    written = wanted_output(
        corrections,
        endings=(),
        overwrite=True,
        option="--corrections",
        inputs=[checkpoint],
        images=[root],
    )

    from finetune.commands.trainer import quiet_libraries
    from finetune.serving.app import application

    quiet_libraries()
    service = _service(
        _opened(Path(checkpoint), accelerator, root),
        token=token,
        own_names_only=inside,
        corrections=written,
        root=None if root is None else Path(root),
        cache_dir=cache_dir,
        image_limits=(max_pixels, max_decoding_mb),
    )
    with listening(host, port) as listener:
        page = address_of(listener) + (f"/#token={token}" if token else "")
        model = service.engine.model
        of_what = f"{len(model.class_names)} classes"
        if not model.task.has_choices:
            of_what = f"a number ({', '.join(model.class_names)})"
        print(f"serving {of_what} at {page} (Ctrl-C ends)", flush=True)
        if not inside:
            print(
                "warning: others in the network reach this server, and what they send is not "
                "encrypted; put it behind a proxy with TLS where that matters.",
                file=sys.stderr,
            )
        run(application(service), listener, service.limits)


def _opened(path: Path, accelerator: str, root: Where | None) -> Model:
    """What is to be served, where it is to answer."""
    if path.suffix.lower() != ".onnx":
        from finetune.prediction.predictor import load_model
        from finetune.runtime import Runtime

        return load_model(path, Runtime.chosen(accelerator))
    if root is not None or accelerator not in ("auto", "cpu"):
        option = f"--accelerator {accelerator}" if root is None else "--data.root"
        raise UsageError(
            f"Expected no {option} beside an export, found it: an .onnx file has no space of "
            "features, and answers on the processor; serve the checkpoint for that."
        )
    from finetune.exporting.onnx_model import OnnxModel

    return OnnxModel.from_file(path)


def _service(
    model: Model,
    *,
    token: str | None,
    own_names_only: bool,
    corrections: Output | None,
    root: Path | None,
    cache_dir: Where | None,
    image_limits: tuple[int, int],
) -> Service:
    """All that a server needs, ready; nothing listens yet."""
    from finetune.combining.ensemble import Ensemble
    from finetune.data.shard_files import folder_of
    from finetune.exporting.onnx_model import OnnxModel
    from finetune.prediction.predictor import fits_of
    from finetune.reporting.explain import weighted_classifiers
    from finetune.serving.app import Service
    from finetune.serving.budget import Limits
    from finetune.serving.corrections import Corrections
    from finetune.serving.engine import Engine
    from finetune.serving.neighbours import Neighbours
    from finetune.training.features.store import FeatureStore

    fits: tuple[SplitRecord, ...] = ()
    if not isinstance(model, OnnxModel):
        fits = fits_of(model)
        if sum(share for _, share in weighted_classifiers(model)) < 0.999:
            raise UsageError(
                "Expected classifiers that can answer new images, found an ensemble with answers "
                "from files; serve one without."
            )
    limits = Limits()
    engine = Engine(model, limits.images_in_work, *image_limits)
    answering = engine.model
    kept = near = None
    if corrections is not None:
        corrections.keep_off(fits=fits)
        kept = Corrections(corrections.path, answering.class_names, answering.task)
    if root is not None and not isinstance(model, OnnxModel):
        store = FeatureStore(cache_dir)
        first = Ensemble.of(model).first_classifier
        near = Neighbours(first, fits, folder_of(root), store, *image_limits)
    return Service(model, engine, limits, token, own_names_only, kept, near)


def _checked(token: str | None, host: str, *, inside: bool) -> str | None:
    if token == "new":
        return secrets.token_urlsafe(24)
    if token is None and not inside:
        raise UsageError(
            f"Expected --token where others can reach the server, found none for {host}; give "
            "`--token new`, or leave --host out to serve this machine alone."
        )
    if token is not None and (len(token) < TOKEN_LETTERS or not set(token) <= _LETTERS):
        raise UsageError(
            f"Expected a --token of at least {TOKEN_LETTERS} letters, digits, - and _, found "
            f"{len(token)} characters; `--token new` draws one."
        )
    return token


_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
