"""What we are called on PyPI, and what to type for what is missing.

What is imported and typed is ``finetune``; on PyPI that name belongs to somebody else, whose
package ``pip install finetune`` would put over ours.
"""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "finetune-images"


def pip_command(extra: str) -> str:
    """What installs an optional part, such as ``export``, in the back quotes of a message."""
    return f"`pip install '{DISTRIBUTION}[{extra}]'`"


def own_version() -> str:
    """The installed version; of a source tree that was never installed, ``0.0.0``."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0.0.0"
