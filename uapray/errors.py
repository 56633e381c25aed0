"""The tree of exceptions: what a user can mend, and what a run can suffer."""


class UaprayError(Exception):
    """Anything uapray raises on purpose; its text is made for people: expected, came, what to do."""

    exit_code = 1


class UserError(UaprayError):
    """The request cannot be served as it stands; nothing was written."""

    exit_code = 2


class ConfigError(UserError):
    """A setting or a grid file is wrong."""


class DataError(UserError):
    """An image set is missing, damaged or does not fit."""


class ClassifierError(UserError):
    """A classifier or its weights are missing, unsafe or do not fit."""


class StoreError(UserError):
    """The store cannot be reached, read or written."""


class NotFoundError(StoreError):
    """The store was reached, and the object is not there."""


class QueryError(UserError):
    """A query is not SQL over the tables, or not read-only."""


class TrialError(UaprayError):
    """A step failed for good; the rest of a grid goes on without it."""


class ClusterError(UaprayError):
    """The Ray cluster cannot do what was asked of it."""


class RunError(UaprayError):
    """A run that had begun cannot go on; what is finished stays, and the same command goes on from there."""


class StoppedError(UaprayError):
    """The run was asked to stop; what is finished stays, and the same command goes on from there."""

    exit_code = 130
