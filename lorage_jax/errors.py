"""The errors a user can mend.

Every one of them is a single message that says what was expected, what came, and what to do.
The command line prints the message without a traceback and exits with a code that is not 0.
"""


class LorageError(Exception):
    """Base class: bad input or an environment that cannot do what was asked."""


class ConfigError(LorageError):
    """A configuration value, or a combination of values, that means nothing."""


class WeightsError(LorageError):
    """A model, generator or card that cannot be read, or does not fit the others."""


class DataError(LorageError):
    """A data file or record that cannot be used. Names the file and the line."""


class OutputError(LorageError):
    """A place that cannot be written, or must not be."""


class Preempted(LorageError):
    """A run that a signal stopped; its state is saved. Exit code 143, as of a process that SIGTERM
    ended: launchers start such a run again.
    """


class TrainingError(LorageError):
    """A run that cannot go on: a loss that is not finite, a checkpoint of another config."""
