"""What a job is called: by what varies."""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

SMALL = Decimal("0.01")
TYPED_DIGITS = 6  # a number of more is a search's
DIGITS = 3  # that are shown of it
SHORT = {"batch_size": "bs", "weight_decay": "wd", "max_epochs": "epochs"}


def read_values(overrides: Sequence[str], varying: Sequence[str]) -> dict[str, str]:
    """Read the values of what varies from the overrides of a job, in the order of ``varying``."""
    given = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    return {key: given[key.lstrip("+")] for key in varying if key.lstrip("+") in given}


def name_job(values: dict[str, str]) -> str:
    """Name a job, ``lr=1e-5 bs=2``: by the last word of each key, or by more where two keys end alike."""
    pairs = zip(shorten(list(values)), values.values(), strict=True)
    return " ".join(f"{label}={format_value(value)}" for label, value in pairs)


def format_value(value: str) -> str:
    """Write numbers as people do, ``1e-5`` for Hydra's ``1e-05``, and those of a search with three digits."""
    try:
        number = Decimal(value)
    except InvalidOperation:
        return value
    if not number.is_finite():
        return value
    if "." in value and len(number.as_tuple().digits) > TYPED_DIGITS:
        number = Decimal(f"{number:.{DIGITS - 1}e}")
        value = f"{number:f}"
    if not 0 < abs(number) < SMALL:
        return value
    mantissa, _, exponent = f"{number.normalize():e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def shorten(keys: Sequence[str]) -> list[str]:
    """Shorten keys to labels that differ: ``optimizer.lr`` to ``lr``, ``data.batch_size`` to ``bs``."""
    words = [key.lstrip("+").rsplit(".", 1)[-1] for key in keys]
    labels = [SHORT.get(word, word) for word in words]
    return [label if labels.count(label) == 1 else key.lstrip("+") for label, key in zip(labels, keys, strict=True)]
