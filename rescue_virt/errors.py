"""Every error that is raised on purpose.

    RescueVirtError                 1   failed; whatever was begun has been undone
    ├── BadRequest                  2   the request itself makes no sense
    ├── NotFound                    3   no such guest, session or image
    ├── WrongState                  4   the guest or its session is not in a state for this
    │   └── GuestBusy               4   another command works on the guest
    ├── Refused                     5   a check before the first effect said no
    ├── WayBackFailed               6   failed, and so did undoing it: a person must act
    ├── ImageError                  7   the image could not be had, did not verify, or is unsafe
    ├── BrokenRecord                1   a session's record cannot be read
    ├── NotInTime                   8   not ready or not stopped in time; the guest is in rescue
    └── Interrupted               130   a signal ended it; whatever was begun has been undone

The class says whose fault it is and carries the exit code and the HTTP status; the message is one
sentence that names the object and says what to do.  Faces map by class, never by text.
"""

from typing import ClassVar


class RescueVirtError(Exception):
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class BadRequest(RescueVirtError):
    exit_code = 2
    http_status = 400


class NotFound(RescueVirtError):
    exit_code = 3
    http_status = 404


class WrongState(RescueVirtError):
    exit_code = 4
    http_status = 409


class GuestBusy(WrongState):
    pass


class BrokenRecord(RescueVirtError):
    """`guest` is the UUID of the guest whose session it is."""

    def __init__(self, message: str, *, guest: str) -> None:
        super().__init__(message)
        self.guest = guest


class Refused(RescueVirtError):
    exit_code = 5
    http_status = 400


class WayBackFailed(RescueVirtError):
    """`commands` are what a person types to go on, in order, ready for a shell."""

    exit_code = 6

    def __init__(self, message: str, *, commands: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.commands = commands


class ImageError(RescueVirtError):
    exit_code = 7
    http_status = 400


class NotInTime(RescueVirtError):
    exit_code = 8
    http_status = 504


class Interrupted(RescueVirtError):
    exit_code = 130
