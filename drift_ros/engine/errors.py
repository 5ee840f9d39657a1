# SPDX-License-Identifier: Apache-2.0
"""Errors a caller can act on. Every message names the cause and the remedy."""

from collections.abc import Collection, Mapping

_LISTED = 8
"""Things of one kind that a message names; people read it, and the node's log."""


def listed(texts: Collection[str], separator: str = '; ') -> str:
    """Join texts for a message; of many the first ones, and how many more there are."""
    shown = list(texts)[:_LISTED]
    more = len(texts) - len(shown)
    return separator.join([*shown, f'and {more} more'] if more else shown)


_NO_MEMORY = (
    'allocate memory',
    'out of memory',
    'insufficient memory',
    "can't start new thread",
    'bad_alloc',
    'bad allocation',
    'unable to convert call argument',  # pybind11, of a message there is no room for
)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether a library means by an error that there was no memory, however it says so."""
    return isinstance(error, MemoryError) or any(
        words in str(error).lower() for words in _NO_MEMORY
    )


class DriftRosError(ValueError):
    """Base of all errors raised for bad input; the tracker's state is as it was before."""


class FrameError(DriftRosError):
    """A frame has the wrong shape, type or size."""


class SeedError(DriftRosError):
    """
    A seed mask was refused.

    Attributes
    ----------
    reasons : dict of int to str
        Why, for every label of the mask at fault; empty when the mask as a whole is at fault.

    """

    def __init__(self, message: str, reasons: Mapping[int, str] | None = None) -> None:
        """Keep the message and the reason of each label."""
        super().__init__(message)
        self.reasons = dict(reasons or {})


class NotFoundError(DriftRosError):
    """
    An object was sought where it is not.

    Attributes
    ----------
    existence : float
        Probability that it is there, by what was found.

    """

    def __init__(self, message: str, existence: float) -> None:
        """Keep the message and the probability."""
        super().__init__(message)
        self.existence = existence


class PromptError(DriftRosError):
    """
    A prompt was refused, or gave no mask.

    Attributes
    ----------
    reasons : dict of int to str
        Why, by index of the prompt; empty when the request as a whole is at fault.

    """

    def __init__(self, message: str, reasons: Mapping[int, str] | None = None) -> None:
        """Keep the message and the reason of each prompt."""
        super().__init__(message)
        self.reasons = dict(reasons or {})

    @classmethod
    def of(cls, reasons: Mapping[int, str]) -> 'PromptError':
        """Make the error whose message is the reasons, prompts counted from 1."""
        return cls(listed([f'prompt {i + 1}: {why}' for i, why in reasons.items()]), reasons)


class UnknownObjectError(DriftRosError):
    """No live object has this id."""


class CheckpointError(DriftRosError):
    """A checkpoint is missing, lacks a component or does not fit the configuration."""


class OptimizeError(DriftRosError):
    """Prompt tokens can not be learnt with this model, these options or these objects."""
