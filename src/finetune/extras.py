"""Packages that only an extra of the installation brings: one line where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from finetune.distribution import DISTRIBUTION
from finetune.errors import MissingPackageError

# What pyproject.toml lists below each. wandb is installed by default; only a lean install lacks it.
EXTRAS = {
    "export": ("onnx", "onnxscript"),  # onnxruntime compares the answers where it is there
    "parquet": ("pyarrow",),
    "ray": ("ray",),
    "remote": ("s3fs",),  # fsspec itself comes with every installation
    "report": ("matplotlib", "jinja2"),
    "serve": ("starlette", "uvicorn", "python_multipart"),
    "track": ("wandb",),
}


def missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if not _is_there(name)]


def need(extra: str, purpose: str) -> None:
    """Refuse to begin what cannot be ended.

    Raises:
        MissingPackageError: a package is missing; with the command that installs it.
    """
    if names := missing(extra):
        raise MissingPackageError(
            f"Expected the package{'s' * (len(EXTRAS[extra]) > 1)} {' and '.join(EXTRAS[extra])} "
            f"for {purpose}, found no {' and no '.join(names)}; {remedy(extra)}."
        )


def remedy(extra: str) -> str:
    """The command that installs it."""
    return f"run `pip install '{DISTRIBUTION}[{extra}]'`"


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
