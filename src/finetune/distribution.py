"""What we are called on PyPI, and which version this is.

What is imported and typed is ``finetune``; on PyPI that name belongs to somebody else, whose
package ``pip install finetune`` would put over ours.
"""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "finetune-images"


def own_version() -> str:
    """The installed version; of a source tree that was never installed, ``0.0.0``."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0.0.0"
