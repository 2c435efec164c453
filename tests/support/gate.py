"""What a receiver stands behind, so that it can be stopped in the middle of anything and started again."""

import contextlib
import socket
import threading


class Gate:
    """Passes TCP connections on to a port of loopback for as long as it is open.

    Args:
        target: The port.

    Attributes:
        port: Where it listens while it is open, always the same.
        limit: It closes of itself, in the middle of whatever it is, before more bytes than this were answered; None
            for never.
    """

    def __init__(self, target):
        self._target = target
        self._lock = threading.Lock()
        self._ends = []
        self._listener = None
        self.port = 0
        self.limit = None
        self.open()

    def open(self):
        """Let everything pass again."""
        self.limit = None
        self._listener = listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self):
        """Listen no more, and break off what is under way."""
        with self._lock:
            listener, self._listener = self._listener, None
            ends, self._ends = self._ends, []
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @property
    def is_open(self):
        return self._listener is not None

    def _accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._ends += [near, far]
            threading.Thread(target=self._pass, args=(near, far), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near), kwargs={"answers": True}, daemon=True).start()

    def _pass(self, source, sink, answers=False):
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if answers and self.limit is not None:
                    self.limit -= len(content)
                    if self.limit < 0:
                        self.close()
                        return
                sink.sendall(content)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
