"""A webhook receiver that answers and does nothing else, in a process of its own; it prints its port.

The path says how long it waits before the answer, in ms, and which status it answers: `/300`, `/0/500`. Without: at once, 200.
"""

import asyncio
import sys

import uvloop

_ANSWER = b"HTTP/1.1 %b Status\r\ncontent-length: 0\r\n\r\n"


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            start = head.index(b"content-length:") + 15
            await reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
            wait_ms, _, status = head.split(b" ", 2)[1][1:].partition(b"/")
            if int(wait_ms or b"0"):
                await asyncio.sleep(int(wait_ms) / 1000)
            writer.write(_ANSWER % (status or b"200"))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(_converse, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
