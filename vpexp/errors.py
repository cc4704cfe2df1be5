"""The one exception family: every error that a user's input can cause.

The command line prints the message of a ``VpexpError`` as one line and exits with code 2; anything else that
escapes is a defect of vpexp and shows its traceback.
"""

import re

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional overrides, and what no encoding has.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def make_printable(text: str) -> str:
    """Write what would act on a terminal, or cannot be printed, as escapes: names come from files of others."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def make_drawable(text: str) -> str:
    """Write what matplotlib cannot draw, or reads as a formula, as escapes."""
    return make_printable(text).replace("$", r"\$")


class VpexpError(Exception):
    """Base of all errors that the user can mend; the message names the file, key or object, and what to do."""

    exit_code = 2


class ConfigError(VpexpError):
    """A wrong key, option or value in the configuration."""


class DataError(VpexpError):
    """A data set that cannot be read, or that holds nothing to learn from."""


class WeightsError(VpexpError):
    """Model weights that are missing, damaged, or laid out for another model."""


class CheckpointError(VpexpError):
    """A checkpoint or run folder that is missing, damaged, or does not fit the model."""


class DivergenceError(VpexpError):
    """A training whose loss is no longer a number."""


class OutputError(VpexpError):
    """A folder that cannot be written to."""


class ExportError(VpexpError):
    """An exported or quantized model that is not as good as it has to be."""


class TrackingError(VpexpError):
    """A store of records that cannot be used where it is what was asked for."""


class StepError(VpexpError):
    """A step of a pipeline that failed."""


class ProcessError(VpexpError):
    """A process of a training on several devices that was lost."""


class WorkerError(VpexpError):
    """A process or machine that worked for a sweep and is gone."""

    exit_code = 1
