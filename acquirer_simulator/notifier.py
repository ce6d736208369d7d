"""Sends the acquirer's notifications: signed, again and again until they are taken or given up. Decides nothing.

Signatures follow Standard Webhooks (https://www.standardwebhooks.com): webhook-id, webhook-timestamp and
webhook-signature, an HMAC-SHA256 over id, timestamp and body. A notification keeps its id however often it is sent.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import aiohttp
import prometheus_client
import structlog
from standardwebhooks import Webhook

from acquirer_simulator import limits
from acquirer_simulator.outbox import Notification
from acquirer_simulator.record import Record, RecordUnavailableError

log = structlog.get_logger()

_NOTIFICATIONS = prometheus_client.Counter(
    "bulkhead_acquirer_simulator_notifications", "Deliveries of notifications, by what came of them.", ["outcome"]
)


class Notifier:
    """One task that sends what is due to the gateway's routers, in turn. `now_ms` is the record's clock."""

    def __init__(self, record: Record, urls: Sequence[str], secret: bytes, now_ms: Callable[[], int]) -> None:
        assert urls, "nobody to notify"
        self._record = record
        self._urls = urls
        self._webhook = Webhook(secret)
        self._now_ms = now_ms

    async def run(self) -> None:
        """Send for ever; cancel it to end."""
        timeout = aiohttp.ClientTimeout(total=limits.NOTIFICATION_TIMEOUT_MS / 1000)
        connector = aiohttp.TCPConnector(limit=limits.NOTIFICATIONS_AT_ONCE_MAX)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            sending: set[asyncio.Task[None]] = set()
            try:
                while True:
                    await self._send_due(session, sending)
            finally:
                for task in sending:
                    task.cancel()
                await asyncio.gather(*sending, return_exceptions=True)

    async def _send_due(self, session: aiohttp.ClientSession, sending: set[asyncio.Task[None]]) -> None:
        due_ms = self._record.next_due_ms()
        wait_ms = limits.NOTIFIER_IDLE_MS if due_ms is None else due_ms - self._now_ms()
        if len(sending) >= limits.NOTIFICATIONS_AT_ONCE_MAX:
            await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
        elif wait_ms > 0:
            await self._record.wait_planned(min(wait_ms, limits.NOTIFIER_IDLE_MS))
        else:
            try:
                due = await self._record.lease_due()
            except RecordUnavailableError:
                await asyncio.sleep(limits.NOTIFICATION_RETRY_DELAY_MS_MIN / 1000)
                return
            for notification, body in due:
                task = asyncio.create_task(self._send(session, notification, body))
                sending.add(task)
                task.add_done_callback(sending.discard)

    async def _send(self, session: aiohttp.ClientSession, notification: Notification, body: bytes) -> None:
        moment = datetime.fromtimestamp(self._now_ms() // 1000, UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": notification.id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": self._webhook.sign(notification.id, moment, body.decode()),
        }
        url = self._urls[notification.attempts % len(self._urls)]
        try:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                taken, outcome = 200 <= response.status <= 299, str(response.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            taken, outcome = False, type(error).__name__
        _NOTIFICATIONS.labels(outcome).inc()
        try:
            state = await self._record.note_delivery(notification, taken=taken)
        except RecordUnavailableError:
            return  # its lease ends by itself: then it is sent once more
        if not taken:
            level = log.error if state == "given_up" else log.info
            level(
                "notification_not_taken",
                id=notification.id,
                type=notification.type,
                outcome=outcome,
                attempts=notification.attempts + 1,
                state=state,
            )
