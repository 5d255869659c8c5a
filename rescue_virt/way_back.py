"""Judges whether a rescue can be ended without losing a byte of the original; pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from rescue_virt.errors import WayBackFailed, WrongState
from rescue_virt.model import LiveState, RescueSession


def check(
    session: RescueSession,
    live: LiveState | None,
    *,
    definition: Mapping[str, tuple[str, ...]],
    bases: Mapping[str, int | None],
) -> None:
    """Compare the guest's storage now with what the rescue began with.

    `definition` holds the source chains of the definition to go back to; `bases` the modification
    times of the files that nobody may have written (None: gone).

    :raises WayBackFailed: on a difference; nothing was touched, and the commands are named.
    """
    if live is not None and live.session_id == session.id:
        for target in live.block_jobs:
            raise _block_job(session, target)
        for target in live.chains:
            _check_chain(session, live, target, definition=definition)
        return  # what backs a chain that was checked, QEMU itself may have written
    tops = {chain[0] for chain in definition.values() if chain}
    if live is not None:
        _check_is_not_ours(session, live)
        _check_snapshots(session, live, tops)
    for path, modified in session.bases.items():
        if modified != bases.get(path) and path not in tops:
            raise _written_base(session, path)


def names_rescue(session: RescueSession, definition: str) -> bool:
    """Whether somebody has made the rescue domain the guest's definition (dumpxml, define)."""
    return session.id in definition or f"{session.directory}/" in definition


def check_same_disks(
    session: RescueSession,
    definition: Mapping[str, tuple[str, ...]],
    original: Mapping[str, tuple[str, ...]],
) -> None:
    """:raises WrongState: if the definition names other disks than those the rescue was given."""
    tops = {chain[0] for chain in definition.values() if chain}
    gone = [chain[0] for chain in original.values() if chain and chain[0] not in tops]
    if gone:
        name = shlex.quote(session.name)
        raise WrongState(
            f"{session.label} no longer has {gone[0]} in its definition, and what is there now may "
            f"be built on it: rescue-virt unrescue {name}, then rescue it again"
        )


def _check_is_not_ours(session: RescueSession, live: LiveState) -> None:
    """Who removes the metadata of the rescue domain has not made it the original."""
    if live.is_up and any(_is_ours(session, chain) for chain in live.chains.values()):
        raise WayBackFailed(
            f"{session.label} runs from the files of its rescue, but no longer says so (its "
            f"metadata was changed); nothing was stopped: shut it down first",
            commands=(f"virsh shutdown {shlex.quote(session.name)}", _again(session)),
        )


def _check_snapshots(session: RescueSession, live: LiveState, tops: set[str]) -> None:
    """With the rescue guest off, only a snapshot's own record tells that it was taken.

    The files in `tops` the definition itself has gone over to.
    """
    for name, files in live.snapshots.items():
        own = f"{session.directory}/"
        left = [file for file in files if not file.startswith(own) and file not in tops]
        if left and name not in session.snapshots:
            raise _left_snapshot(session, name, left)


def _check_chain(
    session: RescueSession,
    live: LiveState,
    target: str,
    *,
    definition: Mapping[str, tuple[str, ...]],
) -> None:
    chain, given = live.chains[target], session.chains.get(target)
    if given is None or chain == given or _is_ours(session, given):
        return
    if chain and any(known and known[0] == chain[0] for known in definition.values()):
        return  # the definition has followed, by libvirt's hand or a person's
    if given[0] in chain:
        raise _snapshot_above(session, live, target, given=given)
    raise _pivoted(session, target, given, chain)


def _is_ours(session: RescueSession, chain: tuple[str, ...]) -> bool:
    return bool(chain) and chain[0].startswith(f"{session.directory}/")


def _block_job(session: RescueSession, target: str) -> WayBackFailed:
    name = shlex.quote(session.name)
    return WayBackFailed(
        f"{session.label} has a block job running on disk {target}; nothing was stopped: "
        f"let it finish or end it, then try again",
        commands=(f"virsh blockjob {name} {target} --info", _again(session)),
    )


def _left_snapshot(session: RescueSession, name: str, files: list[str]) -> WayBackFailed:
    guest = shlex.quote(session.name)
    return WayBackFailed(
        f"{session.label}: snapshot {name} was taken during the rescue, and what was written since "
        f"is in {', '.join(files)}; nothing was started: commit it first, or only delete the "
        f"snapshot to lose it",
        commands=(
            *(f"qemu-img commit -f qcow2 {shlex.quote(file)}" for file in files),
            f"virsh snapshot-delete {guest} {shlex.quote(name)} --metadata",
            _again(session),
        ),
    )


def _snapshot_above(
    session: RescueSession, live: LiveState, target: str, *, given: tuple[str, ...]
) -> WayBackFailed:
    guest = shlex.quote(session.name)
    top = live.chains[target][0]
    # Its record would outlive the commit, and say that its file still holds something.
    records = [name for name, files in live.snapshots.items() if top in files]
    return WayBackFailed(
        f"{session.label}: a snapshot was taken of disk {target} during the rescue, and what "
        f"was written since is not in {given[0]}; nothing was stopped: commit it first",
        commands=(
            f"virsh blockcommit {guest} {target} --base {shlex.quote(given[0])} "
            f"--active --pivot --wait",
            *(f"virsh snapshot-delete {guest} {shlex.quote(name)} --metadata" for name in records),
            _again(session),
        ),
    )


def _pivoted(
    session: RescueSession, target: str, given: tuple[str, ...], chain: tuple[str, ...]
) -> WayBackFailed:
    name = shlex.quote(session.name)
    now = chain[0] if chain else "nothing"
    return WayBackFailed(
        f"{session.label}: disk {target} was {given[0]} when the rescue began and is {now} now, so "
        f"the original definition names a stale disk; nothing was stopped: "
        f"name {now} in it first",
        commands=(
            f"virsh edit {name}  # replace {given[0]} by {now}",
            _again(session),
        ),
    )


def _written_base(session: RescueSession, path: str) -> WayBackFailed:
    users = [chain for chain in session.chains.values() if path in chain[1:]]
    top = users[0][0] if users else "the disk above it"
    name = shlex.quote(session.name)
    return WayBackFailed(
        f"{session.label}: {path}, which only backs {top}, was changed during the rescue, so {top} "
        f"is stale; nothing was started: check which of the two holds the data, and name it in the "
        f"definition",
        commands=(
            f"qemu-img info -U --backing-chain {shlex.quote(top)}",
            f"virsh edit {name}  # if {path} holds the data: replace {top} by it",
            _again(session),
        ),
    )


def _again(session: RescueSession) -> str:
    return f"rescue-virt unrescue {shlex.quote(session.name)}"
