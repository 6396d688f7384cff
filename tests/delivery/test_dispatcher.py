"""Deliveries are sent, signed, retried on schedule, and given up in the end."""

from app.clock import wall_ms
from app.delivery.dispatcher import Dispatcher
from tests.delivery.outbox_rows import Outbox
from tests.receiver import Receiver


async def test_an_event_is_delivered_signed_and_once(dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver) -> None:
    """What the endpoint gets is genuine by the library's own judgement, and is not sent again."""
    endpoint = await outbox.endpoint(receiver.url())
    (session,) = await outbox.add()
    await dispatcher.run_once(wall_ms())
    await dispatcher.idle()
    await dispatcher.run_once(wall_ms() + 60_000)
    await dispatcher.idle()
    (request,) = receiver.requests
    event = request.verify(outbox.secrets[endpoint])
    row = await outbox.only()

    assert event["type"] == "session.closed"
    assert event["data"]["session"]["id"] == session
    assert request.id == str(row.id)
    assert (row.status, row.attempt, row.last_status, row.leased_until) == ("delivered", 1, 200, None)
