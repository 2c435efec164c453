"""An archive in this process that takes DICOM objects over DIMSE, and can be told how to answer."""

import contextlib
import socket
import struct
import threading
import time

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

FIND, ECHO = StudyRootQueryRetrieveInformationModelFind, Verification


class DicomArchive:
    """Listens on loopback for as long as a ``with`` block lasts.

    Attributes:
        port: Where.
        received: The objects that it took, in order.
        peers: Calling and called AE title of each association.
        peak: How many associations were open at once, at most.
        answer: Called with each object's event; returns the status.
        answers: What C-FIND is answered with: called with the identifier, gives pairs of status and identifier.
    """

    def __init__(self, *, contexts=None, tls=None, know_calling=(), require_called="", host="127.0.0.1"):
        self._open = 0
        self.forget()
        self._entity = entity = AE(ae_title=require_called or "ARCHIVE")
        entity.require_called_aet = bool(require_called)
        entity.require_calling_aet = list(know_calling)
        if contexts is None:
            for context in StoragePresentationContexts:
                entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
            contexts = [(FIND, ImplicitVRLittleEndian), (ECHO, ImplicitVRLittleEndian)]
        for sop_class, *syntaxes in contexts:
            entity.add_supported_context(sop_class, list(syntaxes) or [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self._tls, self._host = tls, host
        self._lock = threading.Lock()

    def __enter__(self):
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_ESTABLISHED, self._established),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]
        self._server = self._entity.start_server(
            (self._host, 0), block=False, evt_handlers=handlers, ssl_context=self._tls
        )
        self.port = self._server.socket.getsockname()[1]
        return self

    def __exit__(self, *_):
        self._server.shutdown()

    def forget(self):
        """Begins afresh."""
        self.received, self.peers, self.peak = [], [], 0
        self.answer = lambda event: 0x0000
        self.answers = lambda identifier: ()

    def close(self):
        """Listens no more; what is open stays so."""
        self._server.server_close()

    @property
    def uids(self):
        return [dataset.SOPInstanceUID for dataset in self.received]

    def _established(self, event):
        with self._lock:
            self._open += 1
            self.peak = max(self.peak, self._open)
            self.peers.append((event.assoc.requestor.ae_title, event.assoc.requestor.primitive.called_ae_title))

    def _closed(self, event):
        with self._lock:
            self._open -= 1

    def _store(self, event):
        status = self.answer(event)
        if status is not None and (status == 0 or status >> 12 == 0xB):
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.received.append(dataset)
        return 0xC000 if status is None else status

    def _find(self, event):
        yield from self.answers(event.identifier)


def abort(event):
    """Answers by ending the association."""
    event.assoc.abort()


def match(*studies):
    """Answers C-FIND as an archive of these objects would, at the level that is asked."""

    def answers(identifier):
        unique = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
        found = {}
        for dataset in studies:
            keys = [key for key in unique.values() if identifier.get(key)]
            if all(dataset[key].value == identifier[key].value for key in keys):
                answer = Dataset()
                if "SpecificCharacterSet" in dataset:
                    answer.SpecificCharacterSet = dataset.SpecificCharacterSet
                answer.QueryRetrieveLevel = identifier.QueryRetrieveLevel
                for element in identifier:
                    if element.keyword in dataset:
                        answer[element.tag] = dataset[element.tag]
                found[dataset[unique[identifier.QueryRetrieveLevel]].value] = answer
        for answer in found.values():
            yield 0xFF00, answer
        yield 0x0000, None

    return answers


class Relay:
    """Stands between us and a port, reads slowly, and stops reading after so many bytes."""

    def __init__(self, port, limit=2**62, pause=0):
        self._target, self._limit, self._pause = port, limit, pause
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._ends.set()
        self._listener.close()

    def _accept(self):
        while not self._ends.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            far = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(near, far, self._limit, self._pause), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near), daemon=True).start()

    def _pump(self, source, sink, limit=2**62, pause=0):
        try:
            while limit > 0 and (content := source.recv(min(limit, 16 * 1024))):
                sink.sendall(content)
                limit -= len(content)
                time.sleep(pause)
            if limit <= 0:
                self._ends.wait(30)
        except OSError:
            pass
        finally:
            for each in (source, sink):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


class Rejecter:
    """Rejects every association."""

    def __init__(self, result, source, reason):
        self._answer = struct.pack(">BBLBBBB", 3, 0, 4, 0, result, source, reason)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self):
        threading.Thread(target=self._reject, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _reject(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with near:
                near.recv(65536)
                near.sendall(self._answer)
                near.recv(65536)
