"""When a rescue can be ended without losing a byte of the original."""

from dataclasses import replace
from pathlib import Path

import pytest

from rescue_virt import way_back
from rescue_virt.errors import WayBackFailed
from rescue_virt.model import (
    Attach,
    Evidence,
    GuestUuid,
    LiveState,
    Originals,
    Owner,
    Phase,
    RescueSession,
    RunState,
)

DIRECTORY = Path("/var/lib/rescue-virt/sessions/u")
OURS = (f"{DIRECTORY}/rescue.qcow2", f"{DIRECTORY}/base.img")
ROOT = ("/srv/web1.qcow2", "/srv/base.qcow2")
SESSION = RescueSession(
    id="5e55", guest=GuestUuid("u"), name="web1", directory=DIRECTORY, phase=Phase.ACTIVE,
    owner=Owner.CLI, since="now", image="i", digest=None, user="root", password_hash="$6$",
    ssh_keys=(), password=Evidence.INJECTED, was_running=True, persistent=True,
    attach=Attach.BOOT, why_late=None, originals=Originals.ATTACHED, boot_id="b",
    console_log=DIRECTORY / "console.log", console_offset=0,
    chains={"vda": OURS, "vdb": ROOT, "vdc": ("/srv/data.img",)},
    bases={"/srv/base.qcow2": 1},
)  # fmt: skip
LIVE = LiveState(
    run_state=RunState.RUNNING, persistent=True, session_id="5e55", managed_save=False,
    chains=SESSION.chains, block_jobs=(), agent=False,
)  # fmt: skip
DEFINITION = {"vda": ("/srv/web1.qcow2",), "vdb": ("/srv/data.img",)}


def check(
    live: LiveState | None,
    *,
    session: RescueSession = SESSION,
    definition: dict[str, tuple[str, ...]] | None = None,
    base: int | None = 1,
) -> None:
    way_back.check(
        session, live, definition=definition or DEFINITION, bases={"/srv/base.qcow2": base}
    )


def changed(**chains: tuple[str, ...]) -> LiveState:
    return replace(LIVE, chains={**SESSION.chains, **chains})


def refused(live: LiveState | None, **more: object) -> WayBackFailed:
    with pytest.raises(WayBackFailed) as caught:
        check(live, **more)  # type: ignore[arg-type]
    assert "nothing was st" in str(caught.value)
    assert str(caught.value).startswith("guest ")
    assert caught.value.commands[-1].startswith("rescue-virt unrescue ")
    return caught.value


def test_storage_that_is_as_it_was_can_be_given_back() -> None:
    check(LIVE)


def test_a_guest_that_is_gone_or_off_can_be_given_back() -> None:
    check(None)
    check(replace(LIVE, session_id=None, run_state=RunState.SHUTOFF, chains={}))


def test_a_block_job_is_waited_for() -> None:
    error = refused(replace(LIVE, block_jobs=("vdb",)))
    assert "a block job running on disk vdb" in str(error)
    assert error.commands[0] == "virsh blockjob web1 vdb --info"


def test_the_original_s_own_block_job_is_its_own_business() -> None:
    check(replace(LIVE, session_id=None, block_jobs=("vdb",), chains={"vdb": ("/other",)}))


def test_a_snapshot_is_committed_first() -> None:
    error = refused(changed(vdb=("/srv/during.qcow2", *ROOT)))
    assert "a snapshot was taken of disk vdb" in str(error)
    assert error.commands[0] == (
        "virsh blockcommit web1 vdb --base /srv/web1.qcow2 --active --pivot --wait"
    )


def test_a_pivot_to_the_base_is_named_in_the_definition_first() -> None:
    error = refused(changed(vdb=("/srv/base.qcow2",)))
    assert "disk vdb was /srv/web1.qcow2 when the rescue began and is /srv/base.qcow2 now" in str(
        error
    )
    assert error.commands[0].startswith("virsh edit web1  # replace /srv/web1.qcow2 by /srv/base")


def test_a_disk_whose_medium_has_gone_is_named() -> None:
    assert "is nothing now" in str(refused(changed(vdb=())))


def test_a_definition_that_has_followed_is_fine() -> None:
    followed = {"vda": ("/srv/during.qcow2", *ROOT), "vdb": ("/srv/data.img",)}
    check(changed(vdb=("/srv/during.qcow2", *ROOT)), definition=followed)
    check(changed(vdb=("/srv/base.qcow2",)), definition={"vda": ("/srv/base.qcow2",)}, base=2)


def test_a_disk_that_was_plugged_during_the_rescue_is_nobody_s_loss() -> None:
    check(changed(vdz=("/srv/new.img",)))


def test_our_own_disks_may_do_what_they_like() -> None:
    check(changed(vda=("/srv/snapshot-of-the-rescue.qcow2", *OURS)))


def test_a_disk_that_was_unplugged_is_not_missed() -> None:
    check(replace(LIVE, chains={"vda": OURS}))


@pytest.mark.parametrize("base", [2, None])
def test_a_base_that_was_written_before_the_guest_went_off_is_looked_at_by_a_person(
    base: int | None,
) -> None:
    error = refused(None, base=base)
    assert "/srv/base.qcow2, which only backs /srv/web1.qcow2, was changed" in str(error)
    assert error.commands[:2] == (
        "qemu-img info -U --backing-chain /srv/web1.qcow2",
        "virsh edit web1  # if /srv/base.qcow2 holds the data: replace /srv/web1.qcow2 by it",
    )


def test_what_backs_a_running_chain_that_is_as_it_was_may_have_been_written_by_qemu() -> None:
    check(LIVE, base=2)


def test_a_base_that_the_definition_names_by_now_may_be_written() -> None:
    check(None, definition={"vda": ("/srv/base.qcow2",), "vdb": ()}, base=2)


def test_a_base_of_nothing_that_is_known_is_told_as_well() -> None:
    session = replace(SESSION, chains={})
    assert "which only backs the disk above it" in str(refused(None, session=session, base=2))


OFF = replace(LIVE, session_id=None, run_state=RunState.SHUTOFF, chains={})
TAKEN = {"during": ("/srv/my during.qcow2",)}


def test_of_a_guest_that_is_off_the_snapshot_itself_tells_that_it_was_taken() -> None:
    error = refused(replace(OFF, snapshots=TAKEN))
    assert "snapshot during was taken during the rescue" in str(error)
    assert error.commands[:-1] == (
        "qemu-img commit -f qcow2 '/srv/my during.qcow2'",
        "virsh snapshot-delete web1 during --metadata",
    )


def test_snapshots_from_before_of_the_rescue_alone_or_internal_ones_are_nobody_s_loss() -> None:
    check(replace(OFF, snapshots=TAKEN), session=replace(SESSION, snapshots=("during",)))
    check(replace(OFF, snapshots={"ours": (f"{DIRECTORY}/snapshot.qcow2",), "internal": ()}))


def test_a_snapshot_that_the_definition_follows_is_not_committed() -> None:
    """The original was started by hand and backed up: committing below it would destroy it."""
    chains = {"vda": ("/srv/my during.qcow2", *ROOT)}
    running = replace(LIVE, session_id=None, snapshots=TAKEN, chains=chains)
    check(running, definition={"vda": ("/srv/my during.qcow2", *ROOT)})


def test_what_is_to_be_typed_is_quoted() -> None:
    session = replace(SESSION, name="my web", chains={"vdb": ("/srv/a b", "/srv/base.qcow2")})
    live = replace(LIVE, chains={"vdb": ("/srv/during", "/srv/a b")})
    error = refused(live, session=session)
    assert error.commands == (
        "virsh blockcommit 'my web' vdb --base '/srv/a b' --active --pivot --wait",
        "rescue-virt unrescue 'my web'",
    )
    assert "--backing-chain '/srv/a b'" in refused(None, session=session, base=2).commands[0]
