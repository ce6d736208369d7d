"""Partners from onboarding on: each change is a row of idempotent steps that resume after a crash at any of them.

    create    registry: onboarding -> door: ONBOARD (makes the book) -> registry: active -> registry: key
              -> directory published -> the key is shown
    change    registry -> directory published -> door: CONFIGURE (now, else by the reconciler)
    delete    see deletions.py

A book is made while its partner is `onboarding` and never after: a book that is missing later was lost, and must not
be replaced by an empty one. So nothing here sends ONBOARD for a partner that is active or suspended.
"""

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from cells.api.messages import Profile
from control_plane import api_keys, dry_run, limits
from control_plane.api_keys import ApiKey
from control_plane.data_folder import timestamp
from control_plane.deletions import Deletions
from control_plane.doors import Doors, PartnerStatus
from control_plane.errors import ControlPlaneError, DoorError, RefusedError, RegistryError, RegistryUnknownError
from control_plane.importing import Candidate, Imported, Importer
from control_plane.publishing import Publisher
from control_plane.registry import Registry
from control_plane.registry_errors import was_deleted
from control_plane.registry_records import Partner, end_of_grace
from control_plane.settings import MAIN_ACQUIRER
from router.directory import API_VERSION

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NewPartner:
    """A partner as an operator wants it."""

    id: str
    name: str
    mode: str
    rate_per_second: int
    rate_burst: int
    in_flight_max: int
    isolation: str = "dedicated"
    acquirers: tuple[str, ...] = ()
    currencies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """A partner after a change, and who has not taken it yet; both will, without being asked again."""

    partner: Partner
    key: ApiKey | None = None
    routers_behind: tuple[str, ...] = ()
    door_behind: str = ""  # why, in words


@dataclass(slots=True)
class _Retry:
    """A partner whose door did not take its profile: when to try again (monotonic seconds)."""

    not_before: float
    delay_ms: int


class Partners:
    """All changes to partners, one at a time for each partner, side by side for different ones."""

    def __init__(  # noqa: PLR0913 - its parts, and what the settings say of partners
        self,
        registry: Registry,
        doors: Doors,
        publisher: Publisher,
        pepper: bytes,
        *,
        require_room: Callable[[int, int], None],
        acquirers: Collection[str] = (),
        simulators: Collection[str] = (),
        test_only: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._doors = doors
        self._publisher = publisher
        self._pepper = pepper
        self._require_room = require_room
        self._test_only = test_only
        self._acquirers = acquirers
        self._simulators = simulators
        self._monotonic = monotonic
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._retries: dict[str, _Retry] = {}
        self._importer = Importer(registry, pepper, self._onboard, self._publish, self._alone)
        self.deletions = Deletions(registry, doors, self._publish)

    async def create(self, wanted: NewPartner, who: str) -> Changed:
        """Onboard a partner and give its first key. Repeating it after a failure goes on where it stopped.

        Raises RefusedError where the partner has a key already, DoorError where its cell can't be reached.
        """
        self._require_allowed(wanted)
        async with self._alone(wanted.id):
            row = self._row(wanted)
            # A key may exist only of a partner that is active; so where there is one, all steps were taken.
            if self._registry.keys(wanted.id):
                raise RefusedError(
                    f"partner {wanted.id!r} exists already",
                    hint=f"if its key never reached you: bulkhead partner rotate-key {wanted.id} --grace 0",
                )
            self._require_room(wanted.isolation == "dedicated", wanted.isolation == "pooled")
            found = await self._registry.begin_onboarding(row, who)
            _require_same(found, wanted)
            if found.status == "onboarding":
                found = await self._finish_onboarding(found, who)
            key = api_keys.make(self._pepper, found.mode, found.id)
            await self._registry.add_key(found.id, key, who)
            behind = await self._publish()
            log.info("partner_created", partner=found.id, cell=found.cell)
            return Changed(found, key, behind)

    async def set_status(self, partner_id: str, status: str, who: str) -> Changed:
        """Suspend (`suspended`) or resume (`active`) a partner. Raises NotFoundError, RefusedError."""
        return await self._change(partner_id, lambda: self._registry.set_status(partner_id, status, who))

    async def delete(self, partner_id: str, grace_s: int, who: str) -> Changed:
        """Let a partner read for the grace and then be erased. Raises RefusedError where something is open."""
        return await self._change(
            partner_id, lambda: self.deletions.begin(partner_id, grace_s, who), while_closing=True
        )

    async def restore(self, partner_id: str, who: str) -> Changed:
        """Take a deletion back within its grace. Raises NotFoundError, RefusedError."""
        return await self._change(partner_id, lambda: self.deletions.restore(partner_id, who), while_closing=True)

    async def set_limits(self, partner_id: str, changed: dict[str, int], who: str) -> Changed:
        """Set some of a partner's limits. Raises NotFoundError, RefusedError."""
        return await self._change(partner_id, lambda: self._registry.set_limits(partner_id, changed, who))

    async def set_isolation(self, partner_id: str, isolation: str, who: str) -> Changed:
        """Give a partner a worker of its own (`dedicated`) or a share of one (`pooled`), while it is served.

        To be pooled ends that its door kept it apart for its workers' deaths. Raises NotFoundError, RefusedError.
        """
        if isolation == "dedicated" and self._registry.partner(partner_id).isolation != isolation:
            self._require_room(1, 0)
        changed = await self._change(partner_id, lambda: self._registry.set_isolation(partner_id, isolation, who))
        if isolation == "pooled" and not changed.door_behind:
            try:
                await self._doors.release(changed.partner.cell, partner_id, to_pool=True)
            except ControlPlaneError as error:
                return replace(changed, door_behind=f"{error.what}. Say it again: it may still be kept apart")
        return changed

    async def release(self, partner_id: str, who: str) -> Changed:
        """End a partner's quarantine. Raises NotFoundError, DoorError, RefusedError."""
        async with self._alone(partner_id):
            partner = self._onboarded(partner_id)
            if dry_run.ASKED.get():
                await self._doors.cell_status(partner.cell)  # where it does not answer, nothing would be released
                await self._registry.note(who, "partner_released", partner_id, {})
            await self._doors.release(partner.cell, partner_id, to_pool=False)
            await self._registry.note(who, "partner_released", partner_id, {})
            return Changed(partner)

    async def set_acquirers(self, partner_id: str, acquirers: tuple[str, ...], who: str) -> Changed:
        """Set which acquirers new payments go to, the first choice first. Raises NotFoundError, RefusedError."""
        self._require_known(acquirers, self._registry.partner(partner_id).mode)
        return await self._change(partner_id, lambda: self._registry.set_acquirers(partner_id, acquirers, who))

    async def set_currencies(self, partner_id: str, currencies: tuple[str, ...], who: str) -> Changed:
        """Set which currencies new payments may be in, none for all. Raises NotFoundError, RefusedError."""
        return await self._change(partner_id, lambda: self._registry.set_currencies(partner_id, currencies, who))

    def check_import(self, rows: Sequence[tuple[int, NewPartner]]) -> dict[int, str]:
        """Say which rows, by their lines, can't be onboarded and why. Changes nothing.

        Raises RefusedError where they are too many for this installation. A row that is there already, and is the
        same, is fine: an import that stopped is asked for again.
        """
        wrong: dict[int, str] = {}
        new: list[NewPartner] = []
        for line, wanted in rows:
            try:
                self._require_allowed(wanted)
                found = self._registry.find(wanted.id)
                if found is None:
                    new.append(wanted)
                else:
                    _require_same(found, wanted)
            except RefusedError as error:
                wrong[line] = error.what
        count = len(self._registry.partners())
        if count + len(new) > limits.PARTNERS_MAX:
            raise RefusedError(
                f"there are {count} partners already; with {len(new)} more they are above {limits.PARTNERS_MAX}, "
                "the most that one installation takes"
            )
        dedicated = sum(wanted.isolation == "dedicated" for wanted in new)
        self._require_room(dedicated, len(new) - dedicated)
        return wrong

    def import_all(
        self, rows: Sequence[tuple[int, NewPartner]], statuses: Mapping[str, str], who: str
    ) -> AsyncGenerator[Imported, None]:
        """Onboard rows that `check_import` found nothing wrong with; give each once its key can be used."""
        candidates = [Candidate(line, self._row(wanted), statuses.get(wanted.id, "active")) for line, wanted in rows]
        return self._importer.run(candidates, who)

    async def rotate_key(self, partner_id: str, grace_s: int, who: str, *, first_part: str = "") -> Changed:
        """Give a new key; the older ones end after the grace. `first_part`: what its secret begins with.

        Raises NotFoundError, RefusedError.
        """
        async with self._alone(partner_id):
            partner = self._onboarded(partner_id)
            key = api_keys.make(self._pepper, partner.mode, partner.id, first_part)
            end = end_of_grace(grace_s)
            await self._registry.add_key(partner_id, key, who, others_end_at=end)
            return Changed(partner, key, await self._publish())

    async def revoke_key(self, partner_id: str, key_id: str, who: str) -> Changed:
        """End a key at once. Raises NotFoundError."""
        async with self._alone(partner_id):
            partner = self._registry.partner(partner_id)
            await self._registry.revoke_key(partner_id, key_id, who)
            return Changed(partner, None, await self._publish())

    async def reconcile(self) -> None:
        """Bring doors and directory to what the registry says, once. Raises nothing that a later round may mend."""
        try:
            await self._registry.refresh()
        except ControlPlaneError as error:
            log.warning("registry_not_refreshed", error=error.what)  # what it said last holds
        partners = [one for one in self._registry.partners() if one.id not in self._importer.under_way]
        self._retries = {partner.id: self._retries[partner.id] for partner in partners if partner.id in self._retries}
        cells: dict[str, list[Partner]] = {}
        for partner in partners:
            cells.setdefault(partner.cell, []).append(partner)
        await asyncio.gather(*(self._reconcile_cell(cell, of_cell) for cell, of_cell in cells.items()))
        try:
            await self._publisher.publish()  # nothing is written where nothing changed
        except ControlPlaneError as error:
            log.warning("directory_not_published", error=error.what, where=error.where)

    # Inside.

    async def _reconcile_cell(self, cell: str, partners: list[Partner]) -> None:
        try:
            status = await self._doors.cell_status(cell)
        except ControlPlaneError as error:
            log.debug("cell_not_reconciled", cell=cell, error=error.what)
            return  # the supervisor sees to it that the door comes back
        reported = {partner.partner: partner for partner in status.partners}
        slots = asyncio.Semaphore(limits.CONFIGURES_AT_ONCE_MAX)

        async def one(partner: Partner) -> None:
            async with slots:
                await self._reconcile_partner(partner, reported.get(partner.id))

        await asyncio.gather(*(one(partner) for partner in partners if self._may_try(partner.id)))

    async def _reconcile_partner(self, partner: Partner, reported: PartnerStatus | None) -> None:
        known = -1 if reported is None else reported.profile_version
        if partner.status in {"active", "suspended"} and known == partner.profile_version:
            self._retries.pop(partner.id, None)
            return
        try:
            async with self._alone(partner.id):
                current = self._registry.partner(partner.id)
                if current.status == "onboarding":
                    await self._finish_onboarding(current, "reconciler")
                    return
                if current.status == "erasing":
                    await self.deletions.go_on(current.id)
                    return
                if known > current.profile_version:
                    # The registry came back from a backup: its word counts again once its version is the newest.
                    log.warning("profile_version_was_behind", partner=current.id, version=current.profile_version)
                    current = await self._registry.raise_profile_version(current.id, known)
                if known < current.profile_version:
                    await self._doors.configure(current.cell, to_profile(current))
                    log.info("partner_configured", partner=current.id, version=current.profile_version)
                if current.status == "closing":
                    await self.deletions.go_on(current.id)
        except ControlPlaneError as error:
            self._put_off(partner.id)
            log.warning("partner_not_reconciled", partner=partner.id, cell=partner.cell, error=error.what)
        else:
            self._retries.pop(partner.id, None)

    async def _finish_onboarding(self, partner: Partner, who: str) -> Partner:
        await self._onboard(partner)
        return await self._registry.activate(partner.id, who)

    async def _onboard(self, partner: Partner) -> None:
        assert partner.status == "onboarding"
        try:
            # The profile says what the partner is about to be; its registry row follows.
            await self._doors.onboard(partner.cell, to_profile(partner))
        except DoorError as error:
            raise DoorError(
                f"{partner.id!r} is not onboarded yet: {error.what}",
                where=error.where,
                hint="it will be, by itself, once the door answers; the same command then gives its key",
            ) from error

    async def _change(
        self, partner_id: str, write: Callable[[], Awaitable[Partner]], *, while_closing: bool = False
    ) -> Changed:
        async with self._alone(partner_id):
            if self._onboarded(partner_id).status == "closing" and not while_closing:
                raise RefusedError(
                    f"partner {partner_id!r} is being deleted",
                    hint=f"take that back first: bulkhead partner restore {partner_id}",
                )
            partner = await write()
            behind = await self._publish()  # routers first: a suspended partner is refused at the edge
            try:
                await self._doors.configure(partner.cell, to_profile(partner))
            except ControlPlaneError as error:
                return Changed(partner, None, behind, door_behind=error.what)
            return Changed(partner, None, behind)

    def _row(self, wanted: NewPartner) -> Partner:
        return Partner(
            id=wanted.id,
            name=wanted.name,
            status="onboarding",
            mode=wanted.mode,
            cell=self._publisher.place(wanted.id),
            rate_per_second=wanted.rate_per_second,
            rate_burst=wanted.rate_burst,
            in_flight_max=wanted.in_flight_max,
            api_version=API_VERSION,
            profile_version=1,
            created_at=timestamp(),
            isolation=wanted.isolation,
            acquirers=wanted.acquirers,
            currencies=wanted.currencies,
        )

    def _require_allowed(self, wanted: NewPartner) -> None:
        if wanted.mode == "live" and self._test_only:
            raise RefusedError(
                "a live partner can't be onboarded where faults are injected",
                where="fault_injection in the settings",
                hint="use --mode test, or an installation without fault injection",
            )
        deletion = self._registry.deletion(wanted.id)
        if deletion is not None and deletion.state == "deleted":
            raise was_deleted(deletion)
        self._require_known(wanted.acquirers, wanted.mode)

    def _require_known(self, acquirers: tuple[str, ...], mode: str) -> None:
        unknown = [name for name in acquirers if name not in self._acquirers]
        if unknown or len(set(acquirers)) < len(acquirers):
            raise RefusedError(
                f"there is no acquirer {unknown[0]!r}" if unknown else f"an acquirer is named twice: {acquirers}",
                where="the acquirers given",
                hint=f"those of the settings are: {', '.join(self._acquirers)}",
            )
        simulated = [name for name in acquirers or (MAIN_ACQUIRER,) if name in self._simulators]
        if mode == "live" and simulated:
            raise RefusedError(
                f"the acquirer {simulated[0]!r} is a simulator, and a live partner's payments are no play",
                where="the partner's mode and acquirers",
                hint="use --mode test, or name a real acquirer (acquirer_url or acquirers in the settings)",
            )

    def _onboarded(self, partner_id: str) -> Partner:
        partner = self._registry.partner(partner_id)
        if partner.status == "onboarding":
            raise RefusedError(
                f"partner {partner_id!r} is still being onboarded",
                where=partner.cell,
                hint="see whether its cell is up: bulkhead status",
            )
        if partner.status == "erasing":
            raise RefusedError(f"partner {partner_id!r} is being erased, which goes only forward", where=partner.cell)
        return partner

    async def _publish(self) -> tuple[str, ...]:
        try:
            version = await self._publisher.publish()
        except (RegistryError, RegistryUnknownError) as error:
            raise ControlPlaneError(
                f"the change itself is written down, but routers don't know of it yet: {error.what}",
                where=error.where,
                hint="they will, by themselves, once that is mended; see it with `bulkhead partner show`",
            ) from error
        return tuple(await self._publisher.wait_taken(version))

    def _alone(self, partner_id: str) -> asyncio.Lock:
        return self._locks.setdefault(partner_id, asyncio.Lock())

    def _may_try(self, partner_id: str) -> bool:
        retry = self._retries.get(partner_id)
        return retry is None or self._monotonic() >= retry.not_before

    def _put_off(self, partner_id: str) -> None:
        retry = self._retries.get(partner_id)
        delay_ms = limits.RECONCILE_INTERVAL_MS if retry is None else retry.delay_ms * 2
        delay_ms = min(delay_ms, limits.CONFIGURE_RETRY_DELAY_MS_MAX)
        self._retries[partner_id] = _Retry(self._monotonic() + delay_ms / 1000, delay_ms)


def to_profile(partner: Partner) -> Profile:
    """Give what the partner's cell needs to know of it."""
    return Profile(
        partner_id=partner.id,
        version=partner.profile_version,
        status="suspended" if partner.status in {"suspended", "closing", "erasing"} else "active",
        mode=partner.mode,
        isolation=partner.isolation,
        rate_per_second=partner.rate_per_second,
        rate_burst=partner.rate_burst,
        in_flight_max=partner.in_flight_max,
        acquirers=partner.acquirers,
        currencies=partner.currencies,
    )


def _require_same(found: Partner, wanted: NewPartner) -> None:
    """Only the same partner is resumed: what an operator asks for is what an operator gets."""
    limits_ = ("rate_per_second", "rate_burst", "in_flight_max")
    for name in ("name", "mode", *limits_, "isolation", "acquirers", "currencies"):
        if getattr(found, name) != getattr(wanted, name):
            raise RefusedError(
                f"partner {wanted.id!r} is there already with another {name}: {getattr(found, name)!r}",
                hint="give the same options to go on with it, or choose another --id",
            )
