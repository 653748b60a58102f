"""Opens many streams from one source address and reads them to their end; started by `simulator.py`.

    python benchmarks/simulator_holder.py PORT ADDRESS STREAMS

Prints one line when all are open and their requests sent, and then how many came to their end.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time

BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hold"}],"max_tokens":4,"ignore_eos":true,"stream":true}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (
        len(BODY),
        BODY,
    )
)


def main() -> None:
    """See the module."""
    if len(sys.argv) != 4:
        print("holds streams for simulator.py; nothing to measure by itself")
        return
    port, address, streams = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    selector = selectors.EpollSelector()
    opened = []
    for at in range(streams):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.bind((address, 0))
        for attempt in range(50):
            try:
                sock.connect(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.02 * (attempt + 1))
        sock.sendall(REQUEST)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
        opened.append(sock)
        if at % 500 == 499:
            time.sleep(0.01)
    print("open", flush=True)
    tails = dict.fromkeys((sock.fileno() for sock in opened), b"")
    done, left = 0, len(opened)
    deadline = time.monotonic() + 300
    while left and time.monotonic() < deadline:
        for key, _ in selector.select(timeout=5):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            data = b""
            with contextlib.suppress(OSError):
                data = sock.recv(65536)
            tail = tails[key.fd] = (tails[key.fd] + data)[-32:]
            ended = tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            if ended or not data:
                done += ended
                left -= 1
                selector.unregister(sock)
                sock.close()
    print(done, flush=True)


if __name__ == "__main__":
    main()
