"""Guests for tests: what libvirt 9.0 writes of them, and a host of guests in memory."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rescue_virt.errors import NotFound, RescueVirtError, WrongState
from rescue_virt.images.store import ImageStore
from rescue_virt.libvirt import facts
from rescue_virt.libvirt.host import Host
from rescue_virt.model import (
    GIB,
    Access,
    CachedImage,
    Digest,
    DomainXml,
    Draft,
    Findings,
    GuestFacts,
    GuestUuid,
    ImageFormat,
    ImageProperties,
    ImageRef,
    Layout,
    LiveState,
    Options,
    Placement,
    RescueDomain,
    RescuePlan,
    RescueSession,
    RunState,
    Target,
)
from rescue_virt.plan import make_plan
from rescue_virt.secret import Credentials
from rescue_virt.sessions import Sessions
from rescue_virt.settings import Settings

DOMAINS = Path(__file__).parent / "data" / "domains"
DIRECTORY = Path("/var/lib/rescue-virt/sessions/u")


def domain(name: str) -> DomainXml:
    return DomainXml((DOMAINS / f"{name}.xml").read_text())


def make_guest(xml: str, **changes: Any) -> GuestFacts:
    guest = GuestFacts(
        domain=facts.read(xml),
        xml=DomainXml(xml),
        run_state=RunState.RUNNING,
        persistent=True,
        managed_save=False,
        block_jobs=(),
        nvram=None,
        chains={Target(t): chain for t, chain in facts.chains(xml).items()},
        relabels=True,
    )
    return dataclasses.replace(guest, **changes)


def make_image(**changes: Any) -> CachedImage:
    properties = {
        name: changes.pop(name)
        for name in [f.name for f in dataclasses.fields(ImageProperties)]
        if name in changes
    }
    image = CachedImage(
        name="rescue.qcow2",
        path=DIRECTORY / "base.img",
        digest=Digest(algorithm="sha256", hex="ab" * 32),
        size=1 << 20,
        virtual_size=GIB,
        format=ImageFormat.QCOW2,
        properties=ImageProperties(**properties),
    )
    return dataclasses.replace(image, **changes)


def decide(
    guest: GuestFacts,
    image: CachedImage | None = None,
    *,
    layout: Layout | None = None,
    late: bool = False,
    seeds: tuple[str, ...] = (),
) -> RescuePlan:
    findings = Findings(
        seeds=frozenset(Target(seed) for seed in seeds),
        duplicate="both are backed by /srv/base.img" if late else None,
    )
    draft = Draft(directory=DIRECTORY, session_id="5e55-10", since="2026-01-02T03:04:05+00:00")
    return make_plan(
        guest, image or make_image(), findings=findings, options=Options(layout=layout), draft=draft
    )


def names(placements: tuple[Placement, ...]) -> list[str]:
    return [f"{p.before}→{p.now}{' root' if p.is_root else ''}" for p in placements]


def xml_diff(before: str, after: str) -> list[str]:
    """The lines that went (-) and came (+), in order, without their indentation."""
    matcher = difflib.SequenceMatcher(None, old := before.splitlines(), new := after.splitlines())
    lines = []
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            lines += ["-" + line.strip() for line in old[a:b]]
            lines += ["+" + line.strip() for line in new[c:d]]
    return lines


class Story:
    """What was done to the guest, its files and its record, in order, by all fakes together.

    `before` and `after` are called with the name of each call; they may raise.
    """

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.calls: list[str] = []
        self.before: Callable[[str], None] = _nothing
        self.after: Callable[[str], None] = _nothing

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        self.calls.append(name)
        self.before(name)
        yield
        self.after(name)

    @contextmanager
    def effect(self, name: str) -> Iterator[None]:
        with self.call(name):
            self.effects.append(name)
            yield


def _nothing(_call: str) -> None:
    pass


class FakeHost(Host):
    """libvirt in a file: it outlives a test's processes as libvirtd outlives ours."""

    def __init__(self, path: Path, story: Story) -> None:
        self._path = path
        self.story = story
        self.obeys = True  # shuts down when asked
        self.agent = False
        self.jobs: tuple[str, ...] = ()
        self.snapshots: dict[str, tuple[str, ...]] = {}
        self.state = RunState.RUNNING
        if not path.exists():
            self._save({"defined": {}, "live": {}, "saved": {}, "reboot": {}, "runs": {}})

    # what a person would do with virsh

    @property
    def defined(self) -> dict[str, str]:
        return self._load()["defined"]

    @property
    def live(self) -> dict[str, str]:
        return self._load()["live"]

    @property
    def saved(self) -> dict[str, str]:
        return self._load()["saved"]

    @property
    def reboot(self) -> dict[str, str]:
        return self._load()["reboot"]

    def put(self, where: str, uuid: str, xml: str | None) -> None:
        state = self._load()
        if xml is None:
            state[where].pop(uuid, None)
        else:
            state[where][uuid] = xml
        self._save(state)

    def save_guest(self, uuid: str) -> None:
        self.put("saved", uuid, self.live[uuid])
        self.put("live", uuid, None)

    # the interface

    def find(self, guest: str) -> tuple[GuestUuid, str]:
        with self.story.call("find"):
            for uuid, name in self.guests():
                if guest in {uuid, name}:
                    return uuid, name
            raise NotFound(f"no guest {guest}")

    def guests(self) -> list[tuple[GuestUuid, str]]:
        known = {**self.defined, **self.live}
        return [(GuestUuid(uuid), facts.read(xml).name) for uuid, xml in known.items()]

    def inspect(self, guest: str) -> GuestFacts:
        with self.story.call("inspect"):
            uuid, _ = self.find(guest)
            xml = self.defined.get(uuid) or self.live[uuid]
            return make_guest(
                xml,
                run_state=self.state if uuid in self.live else RunState.SHUTOFF,
                persistent=uuid in self.defined,
                managed_save=uuid in self.saved,
                snapshots=tuple(self.snapshots),
                uri=self.uri(),
            )

    def look(self, uuid: GuestUuid) -> LiveState | None:
        with self.story.call("look"):
            xml = self.live.get(uuid) or self.saved.get(uuid) or self.defined.get(uuid)
            if xml is None:
                return None
            return LiveState(
                run_state=self.state if uuid in self.live else RunState.SHUTOFF,
                persistent=uuid in self.defined,
                session_id=facts.read(xml).session_id,
                managed_save=uuid in self.saved,
                chains=facts.chains(xml),
                block_jobs=self.jobs,
                agent=self.agent,
                snapshots=self.snapshots,
                run=self._run(uuid),
            )

    def definition(self, uuid: GuestUuid) -> DomainXml | None:
        with self.story.call("definition"):
            xml = self.defined.get(uuid)
            return DomainXml(xml) if xml else None

    def access(self, uuid: GuestUuid) -> Access:
        return Access(console="/dev/pts/7", addresses=("192.0.2.7",) if uuid in self.live else ())

    def validate(self, name: str, xml: str) -> None:
        with self.story.call("validate"):
            assert facts.read(xml).name == name

    def stop(self, uuid: GuestUuid, options: Options) -> None:
        with self.story.call("stop"):
            if uuid in self.live:
                self.story.effects.append("force off" if options.force_off else "stop")
                self.put("live", uuid, None)

    def ask_to_stop(self, uuid: GuestUuid, timeout: float) -> bool:
        with self.story.effect(f"ask to stop within {timeout:.0f} s"):
            if self.obeys:
                self.put("live", uuid, None)
            return self.obeys

    def force_off(self, uuid: GuestUuid) -> None:
        with self.story.effect("force off"):
            self.put("live", uuid, None)

    def run(self, name: str, xml: str) -> None:
        parsed = facts.read(xml)
        with self.story.effect("run rescue" if parsed.session_id else "run original"):
            if parsed.uuid in self.saved:
                raise WrongState(f"guest {name} was saved meanwhile")
            if parsed.uuid in self.live:
                raise RescueVirtError(f"guest {name} runs already")
            self.put("live", parsed.uuid, xml)
            self._count_run(parsed.uuid)

    def start(self, uuid: GuestUuid) -> None:
        with self.story.call("start"):
            if uuid in self.live:
                return
            xml = self.saved.get(uuid) or self.defined.get(uuid)
            if xml is None:
                raise NotFound(f"no guest {uuid}")
            self.story.effects.append("start saved" if uuid in self.saved else "start")
            self.put("saved", uuid, None)
            self.put("live", uuid, xml)
            self._count_run(uuid)

    def define(self, name: str, xml: str, *, autostart: bool = False) -> None:  # noqa: ARG002
        with self.story.effect("define"):
            assert facts.read(xml).name == name
            self.put("defined", facts.read(xml).uuid, xml)

    def drop_managed_save(self, uuid: GuestUuid) -> None:
        with self.story.effect("drop managed save"):
            self.put("saved", uuid, None)

    def plug(self, uuid: GuestUuid, disk: str) -> None:
        with self.story.effect(f"plug {facts.disk_target(disk)}"):
            if facts.disk_target(disk) in facts.chains(self.live[uuid]):
                raise RescueVirtError("target already exists")
            xml = self.live[uuid].replace("</devices>", f"{disk}</devices>")
            self.put("live", uuid, xml)

    def end_at_reboot(self, uuid: GuestUuid) -> None:
        with self.story.effect("end at reboot"):
            self.put("reboot", uuid, "destroy")

    def set_access(self, uuid: GuestUuid, user: str, hashed: str, keys: tuple[str, ...]) -> None:
        with self.story.effect(f"set password of {user} and {len(keys)} keys"):
            assert uuid in self.live
            assert hashed.startswith("$6$")

    def _run(self, uuid: str) -> int | None:
        """How often it was started until now, as libvirt numbers the runs of its guests."""
        state = self._load()
        return len(state["runs"].get(uuid, "")) if uuid in state["live"] else None

    def _count_run(self, uuid: str) -> None:
        self.put("runs", uuid, self._load()["runs"].get(uuid, "") + "+")

    def relabels(self) -> bool:
        return True

    def uri(self) -> str:
        return "fake:///system"

    def _load(self) -> dict[str, dict[str, str]]:
        loaded: dict[str, dict[str, str]] = json.loads(self._path.read_text())
        return loaded

    def _save(self, state: dict[str, dict[str, str]]) -> None:
        self._path.write_text(json.dumps(state))


class FakeImages(ImageStore):
    """Images whose files are empty."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.found = Findings()
        self.image = make_image()

    def check_source(self, guest: GuestFacts, ref: ImageRef) -> None:
        with self.story.call("check source"):
            assert guest.domain.name
            assert ref.location

    def preview(self, ref: ImageRef) -> CachedImage:
        return dataclasses.replace(self.image, name=ref.location)

    def fetch(self, ref: ImageRef, into: Path) -> CachedImage:
        with self.story.effect("fetch"):
            into.touch()
            return dataclasses.replace(self.image, name=ref.location, path=into)

    def findings(self, guest: GuestFacts, image: CachedImage) -> Findings:
        with self.story.call("findings"):
            assert guest.chains
            assert image.size
            return self.found

    def check_space(self, plan: RescuePlan) -> None:
        with self.story.call("check space"):
            assert plan.overlay_size

    def prepare(self, plan: RescuePlan, credentials: Credentials, hashed: str) -> None:
        with self.story.effect("prepare"):
            assert credentials.user
            assert hashed.startswith("$6$")
            for path in (plan.overlay, plan.seed, plan.console_log):
                path.touch(0o600)


class WatchedSessions(Sessions):
    """The real thing; what it writes is told."""

    def __init__(self, settings: Settings, story: Story) -> None:
        super().__init__(settings)
        self.story = story

    def keep(self, session: RescueSession, *, original: str, rescue: RescueDomain) -> RescueSession:
        with self.story.effect("keep"):
            return super().keep(session, original=original, rescue=rescue)

    def mark(self, session: RescueSession, **changes: Any) -> RescueSession:
        if "boot_id" in changes:
            with self.story.call("note boot"):
                return super().mark(session, **changes)
        for field in ("phase", "originals", "password"):
            if field in changes:
                with self.story.effect(f"mark {changes[field]}"):
                    return super().mark(session, **changes)
        with self.story.call("note storage"):
            return super().mark(session, **changes)

    def forget(self, session: RescueSession) -> None:
        with self.story.effect("forget"):
            super().forget(session)
