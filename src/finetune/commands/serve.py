"""``finetune serve``: a page to try a checkpoint on, and its answers for other programs."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated

from finetune.commands import folder_options as options
from finetune.commands.guest import Where
from finetune.commands.outputs import OptionalPath, checked_output
from finetune.commands.verb import Typed
from finetune.errors import UsageError
from finetune.extras import need
from finetune.spec.schema import whole

TOKEN_LETTERS = 16  # at least, of one that people choose


def serve(
    checkpoint: Where,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, whole(0, 65535)] = 8000,
    token: Annotated[str | None, Typed(metavar="TOKEN|new")] = None,
    corrections: Annotated[OptionalPath, Typed(metavar="DIR")] = None,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    max_decoding_mb: options.MaxDecodingMb = options.MAX_DECODING_MB,
    accelerator: options.Accelerator = "auto",
) -> None:
    """Serve a page to try a checkpoint on, and POST /predict for programs, until Ctrl-C.

    Images are held in memory while they are answered, and nowhere else.

    Args:
        checkpoint: a .ckpt file or a run folder: classifier, average or ensemble.
        host: the address to listen at; any but this machine's own needs --token.
        port: to listen at; 0 takes a free one.
        token: what clients have to know; new draws one and prints it.
        corrections: a folder for images with the label that people say is true, and their manifest.
        max_pixels: refuse images with more pixels, at least 1.
        max_decoding_mb: refuse images that take more memory to decode, in MiB.
        accelerator: where networks answer: auto, cpu, gpu, cuda or mps.
    """
    need("serve", "serving a checkpoint")
    from finetune.serving.server import address_of, is_loopback, listening, run

    inside = is_loopback(host)
    token = _checked(token, host, inside=inside)
    written = None
    if corrections is not None:
        written = checked_output(
            corrections, endings=(), overwrite=True, option="--corrections", inputs=[checkpoint]
        )

    from finetune.commands.trainer import quiet_libraries
    from finetune.prediction.predictor import fits_of, load_model
    from finetune.reporting.explain import weighted_classifiers
    from finetune.runtime import Runtime
    from finetune.serving.app import Service, application
    from finetune.serving.budget import Limits
    from finetune.serving.corrections import Corrections
    from finetune.serving.engine import Engine

    quiet_libraries()
    model = load_model(Path(checkpoint), Runtime.chosen(accelerator))
    if sum(share for _, share in weighted_classifiers(model)) < 0.999:
        raise UsageError(
            "Expected classifiers that can answer new images, found an ensemble with answers from "
            "files; serve one without."
        )
    limits = Limits()
    engine = Engine(
        model,
        images_in_work=limits.images_in_work,
        max_pixels=max_pixels,
        max_decoding_mb=max_decoding_mb,
    )
    kept = None
    if written is not None:
        written.keep_off(fits=fits_of(model))
        kept = Corrections(written.path, engine.model.class_names, engine.model.task)
    service = Service(model, engine, limits, token, own_names_only=inside, corrections=kept)
    with listening(host, port) as listener:
        page = address_of(listener) + (f"/#token={token}" if token else "")
        print(
            f"serving {len(engine.model.class_names)} classes at {page} (Ctrl-C ends)", flush=True
        )
        if not inside:
            print(
                "warning: others in the network reach this server, and what they send is not "
                "encrypted; put it behind a proxy with TLS where that matters.",
                file=sys.stderr,
            )
        run(application(service), listener, limits)


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
