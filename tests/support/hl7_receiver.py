"""A SIMULATED hospital's HL7 receiver on loopback: it speaks MLLP, keeps what it got, and misbehaves on demand.

It shares no code with the provider and uses no HL7 library, so that it cannot share a mistake.
"""

import contextlib
import socketserver
import threading
import time

from .hl7_reader import Message

START, END = b"\x0b", b"\x1c\r"


def ack(message, code, *, control_id=None, text="", errors=""):
    """An acknowledgement of a message, without its frame."""
    sent = message["MSH"]
    kind = "ACK^R01^ACK"
    header = f"MSH|^~\\&|{sent[5]}|{sent[6]}|{sent[3]}|{sent[4]}|20260102030405||{kind}|RCV1|{sent[11]}|{sent[12]}"
    reference = message.control_id if control_id is None else control_id
    return f"{header}\rMSA|{code}|{reference}|{text}\r{errors}".encode()


def frame(block):
    return START + block + END


# What a receiver may do with a message: each gets the connection and the message.


def accept(wire, message):
    wire.sendall(frame(ack(message, "AA")))


def answer(code, **more):
    """One acknowledgement with that code."""
    return lambda wire, message: wire.sendall(frame(ack(message, code, **more)))


def answers(*codes, pause=0.0):
    """Several acknowledgements, one after the other."""

    def act(wire, message):
        for code in codes:
            wire.sendall(frame(ack(message, code)))
            time.sleep(pause)

    return act


def in_pieces(size, pause=0.0):
    """An acknowledgement in packets of so many bytes."""

    def act(wire, message):
        block = frame(ack(message, "AA"))
        for start in range(0, len(block), size):
            wire.sendall(block[start : start + size])
            time.sleep(pause)

    return act


def half(wire, message):
    """The first half of an acknowledgement, then the end of the connection."""
    block = frame(ack(message, "AA"))
    wire.sendall(block[: len(block) // 2])


def drop(wire, message):
    """Nothing, and the end of the connection."""


def silent(seconds):
    """Nothing for so long."""
    return lambda wire, message: time.sleep(seconds)


def late(seconds, then=accept):
    def act(wire, message):
        time.sleep(seconds)
        then(wire, message)

    return act


def raw(data):
    """Whatever bytes."""
    return lambda wire, message: wire.sendall(data)


class Hl7Receiver:
    """Listens until its ``with`` block ends.

    Args:
        tls: An SSL context for the server's side.

    Attributes:
        messages: What came, in order.
        actions: What is done with the next messages, in order; then ``accept``.
    """

    def __init__(self, tls=None):
        self.messages = []
        self.actions = []
        receiver = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    wire = tls.wrap_socket(self.request, server_side=True) if tls else self.request
                    with wire:
                        receiver._serve(wire)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request, address):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host, self.port = self._server.server_address

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    @property
    def reports(self):
        """What a user of the receiver sees: the newest message by filler order number."""
        return {message["OBR"][3]: message for message in self.messages}

    def _serve(self, wire):
        received = b""
        while data := wire.recv(65536):
            received += data
            while END in received:
                block, _, received = received.partition(END)
                if not block.startswith(START):
                    return
                message = Message(block[1:])
                self.messages.append(message)
                action = self.actions.pop(0) if self.actions else accept
                action(wire, message)
                if action in (drop, half):
                    return
